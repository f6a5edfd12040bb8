"""`make demo`: the whole project in a minute. Prints every command before it runs it; no network.

First a real trace on 128 simulated GPUs under three policies, then a tiny random model that really
runs on this machine under the same policies, then the check that both backends decide alike.
Replaces out/demo.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from batchgen.policy.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("out") / "demo"  # relative to the repository, so that the commands can be copied
TRACE = Path("traces") / "vidur-arxiv-summarization.jsonl.gz"
POLICIES = ("static", "vllm", "batchgen")
NUM_PROMPTS = 64
MAX_TOKENS = 96
KV_TOKENS = 4096  # room for few rows, so that some must wait or give way and the policies differ


def main() -> int:
    """Returns the exit code of the first command that failed, else 0."""
    began = time.perf_counter()
    target = ROOT / OUT
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)

    title(f"1. {TRACE.name} as one batch on 128 simulated H20 GPUs, DeepSeek-R1, three policies")
    compare = ",".join(POLICIES)
    batchgen("sim", "--trace", TRACE, "--gpus", 128, "--compare", compare, "--out", OUT / "sim")

    title(f"2. A tiny random model on this machine, {NUM_PROMPTS} prompts, the same three policies")
    batchgen("model", "init", OUT / "model")
    write_prompts(OUT / "prompts.jsonl")
    answers = {policy: OUT / "exec" / f"{policy}.jsonl" for policy in POLICIES}
    pages = {policy: KV_TOKENS // PRESETS[policy].page_tokens for policy in POLICIES}
    for policy, path in answers.items():  # one thread: products this small gain nothing from more
        (ROOT / path).parent.mkdir(exist_ok=True)
        batchgen(
            "exec", "--model", OUT / "model", "-i", OUT / "prompts.jsonl", "-o", path,
            "--policy", policy, "--max-tokens", MAX_TOKENS, "--hbm-pages", pages[policy],
            "--threads", 1, "--exact",
            "--out", OUT / "exec" / policy, "--log", "full", "--progress", "off", "--json",
            quiet=True,
        )  # fmt: skip
        tell(policy, ROOT / OUT / "exec" / policy / "summary.json")
    compare_answers(answers)

    title("3. One policy, two backends: are the decisions the same?")
    batchgen(
        "validate", "agreement", "--model", OUT / "model", "-i", OUT / "prompts.jsonl",
        "--policies", compare, "--max-tokens", MAX_TOKENS,
    )  # fmt: skip
    batchgen("validate", "replay", OUT / "exec" / "batchgen")

    title(f"Done in {time.perf_counter() - began:.0f} s. The pictures")
    for name in ("completion", "over_time", "utilisation", "time_split"):
        print(f"  {OUT / 'sim' / 'plots' / name}.png")
    for policy in POLICIES:
        print(f"  {OUT / 'sim' / policy / 'plots'}/  {OUT / 'exec' / policy / 'plots'}/")
    return 0


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def batchgen(*arguments: object, quiet: bool = False) -> None:
    """Show a batchgen command and run it in the repository; ends the demo when it fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ batchgen {shlex.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "batchgen", *words],
        cwd=ROOT,
        check=False,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
    )
    if done.returncode:
        print(done.stderr or "", end="", file=sys.stderr)
        raise SystemExit(done.returncode)


def write_prompts(path: Path) -> None:
    """Word problems of our own with seeded numbers, in the style of school exercises."""
    rng = np.random.default_rng(0)
    people = ("Ana", "Bo", "Chen", "Dua", "Emil", "Farah", "Goro", "Hana")
    things = ("apples", "stamps", "marbles", "tickets", "pages", "shells")
    stories = (
        "{a} has {x} {t} and gives {y} of them to {b}. How many {t} are left?",
        "{a} buys {x} boxes with {y} {t} each and loses {z}. How many {t} remain?",
        "{a} and {b} share {x} {t}; {a} takes {y} more than {b} in the first round and {z} in the "
        "second. How many does each of them hold in the end?",
    )
    with (ROOT / path).open("w", encoding="utf-8") as file:
        for _ in range(NUM_PROMPTS):
            first, second = rng.choice(len(people), size=2, replace=False)
            x, y, z = rng.integers([40, 2, 1], [90, 20, 9]).tolist()
            text = stories[rng.integers(len(stories))].format(
                a=people[first], b=people[second], t=rng.choice(things), x=x, y=y, z=z
            )
            file.write(json.dumps({"prompt": text}) + "\n")
    print(f"(wrote {path}: {NUM_PROMPTS} prompts)")


def tell(policy: str, path: Path) -> None:
    """One line about a finished run."""
    run = json.loads(path.read_text(encoding="utf-8"))
    print(
        f"  {policy}: {run['finished_rows']} rows, {run['output_tokens']:,} tokens in "
        f"{run['bct_s']:.2f} s; {run['passes']} passes, {run['preemptions']} preemptions, "
        f"{run['suspensions']} suspensions",
        flush=True,
    )


def compare_answers(answers: dict[str, Path]) -> None:
    """Say whether the policies produced the same tokens, row by row."""
    rows = {policy: read_answers(ROOT / path) for policy, path in answers.items()}
    first = rows[POLICIES[0]]
    equal = sum(all(found[i] == first[i] for found in rows.values()) for i in range(NUM_PROMPTS))
    if equal == NUM_PROMPTS:
        print(f"All {NUM_PROMPTS} answers are the same under {', '.join(POLICIES)}.")
    else:
        raise SystemExit(f"only {equal} of {NUM_PROMPTS} answers are the same, a bug in batchgen")


def read_answers(path: Path) -> list[object]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["response"]["body"]["choices"] for line in lines]


if __name__ == "__main__":
    sys.exit(main())
