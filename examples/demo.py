"""`make demo`: the whole project in a few minutes. Prints each command before it runs; no network.

First a real trace on 128 simulated GPUs under three policies. Then the small model of this
repository answers a batch of prompts on this machine's CPU under the same policies, the answers are
checked, and the simulator's prediction is shown beside the truth. Last, two checks that both
backends decide alike. Replaces out/demo, or the folder given as its argument.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRACE = Path("traces") / "vidur-arxiv-summarization.jsonl.gz"
MODEL = Path("models") / "sums-moe"
PROMPTS = Path("examples") / "prompts" / "reasoning-200.jsonl"
SHORT = PROMPTS.with_name("short-400.jsonl")
OTHER = PROMPTS.with_name("other-128.jsonl")  # for the profile
POLICIES = ("static", "vllm", "batchgen")
COMPARE = ",".join(POLICIES)
PAGE_TOKENS = 64  # the same pages under every policy, and those that the profile measures
HBM_PAGES = 160  # room for few worst cases, so that some rows must wait and the policies differ
THREADS = 1  # products this small gain nothing from more
SHORT_ROWS = 64
SHORT_TOKENS = 64  # about a quarter of these answers is cut short


def main(arguments: list[str]) -> int:
    """Returns 0; a command that fails ends the demo with its exit code."""
    began = time.perf_counter()
    # Relative to the repository, so that the commands can be copied.
    out = Path(arguments[0]).resolve() if arguments else Path("out") / "demo"
    target = ROOT / out
    if target.exists():
        if not (target / "sim").is_dir() and any(target.iterdir()):
            raise SystemExit(f"{target} holds something else than a demo; name another folder")
        shutil.rmtree(target)
    target.mkdir(parents=True)

    title(f"1. {TRACE.name} as one batch on 128 simulated H20 GPUs, DeepSeek-R1, three policies")
    batchgen("sim", "--trace", TRACE, "--gpus", 128, "--compare", COMPARE, "--out", out / "sim")

    title("2. A small model that adds step by step, on this CPU: 200 prompts, the same policies")
    answers = {policy: out / "exec" / f"{policy}.jsonl" for policy in POLICIES}
    (target / "exec").mkdir()
    for policy, path in answers.items():
        batchgen(
            "exec", "--model", MODEL, "-i", PROMPTS, "-o", path, "--policy", policy,
            "--hbm-pages", HBM_PAGES, "--set", f"plan.page_tokens={PAGE_TOKENS}",
            "--threads", THREADS, "--exact", "--out", out / "exec" / policy, "--log", "full",
            "--progress", "off", "--json", quiet=True,
        )  # fmt: skip
        tell(policy, target / "exec" / policy / "summary.json")
    compare_answers({policy: ROOT / path for policy, path in answers.items()})
    python("examples/check_answers.py", PROMPTS, answers[POLICIES[-1]])

    title("3. How long will it take? sim with a profile of this machine, beside the truth")
    profile = out / "profile.json"
    batchgen(
        "profile", "--model", MODEL, "--prompts", OTHER, "--threads", THREADS, "-o", profile
    )  # fmt: skip
    code = batchgen(
        "validate", "prediction", "--model", MODEL, "-i", PROMPTS, "-i", SHORT,
        "--profile", profile, "--policies", COMPARE, "--hbm-pages", HBM_PAGES,
        "--repeats", 1, "--threads", THREADS,
        "--set", f"plan.page_tokens={PAGE_TOKENS}", allowed=(0, 1),
    )  # fmt: skip
    if code:
        print(
            "(One run each: other work on this machine slows the profile or the truth, not both.)"
        )

    title("4. One policy, two backends: are the decisions the same?")
    write_short(ROOT / out / "short.jsonl")
    short = out / "short.jsonl"
    print(f"({short}: {SHORT_ROWS} of the prompts, answers of at most {SHORT_TOKENS} tokens)")
    batchgen("validate", "agreement", "--model", MODEL, "-i", short, "--policies", COMPARE)
    batchgen("validate", "replay", out / "exec" / "batchgen")

    title(f"Done in {time.perf_counter() - began:.0f} s. The pictures")
    for folder in ("sim", *(f"{kind}/{policy}" for kind in ("sim", "exec") for policy in POLICIES)):
        plots = out / folder / "plots"
        names = ", ".join(sorted(path.name for path in (ROOT / plots).glob("*.png")))
        print(f"  {plots}/  {names}")
    return 0


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def batchgen(*words: object, quiet: bool = False, allowed: tuple[int, ...] = (0,)) -> int:
    """Show a batchgen command and run it in the repository, as `run` does."""
    print(f"$ batchgen {shlex.join(map(str, words))}", flush=True)
    return run([sys.executable, "-m", "batchgen", *map(str, words)], quiet=quiet, allowed=allowed)


def python(*words: object) -> int:
    """Show a command of this Python and run it in the repository, as `run` does."""
    print(f"$ python {shlex.join(map(str, words))}", flush=True)
    return run([sys.executable, *map(str, words)], quiet=False, allowed=(0,))


def run(command: list[str], *, quiet: bool, allowed: tuple[int, ...]) -> int:
    """Returns the exit code when it is among `allowed`, else ends the demo with it."""
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=pipe, stderr=pipe, text=True)
    sys.stdout.flush()
    if done.returncode not in allowed:
        print(done.stderr or "", end="", file=sys.stderr)
        raise SystemExit(done.returncode)
    return done.returncode


def write_short(path: Path) -> None:
    """The first prompts with a small budget, so that rows end in every way there is."""
    lines = (ROOT / PROMPTS).read_text(encoding="utf-8").splitlines()[:SHORT_ROWS]
    rows = [json.loads(line) | {"max_tokens": SHORT_TOKENS} for line in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tell(policy: str, path: Path) -> None:
    """One line about a finished run."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    print(
        f"  {policy}: {summary['finished_rows']} rows, {summary['output_tokens']:,} tokens in "
        f"{summary['bct_s']:.2f} s; {summary['passes']} passes, {summary['preemptions']} "
        f"preemptions, {summary['suspensions']} suspensions",
        flush=True,
    )


def compare_answers(answers: dict[str, Path]) -> None:
    """Say that all policies gave the same answers, row by row; ends the demo where they did not."""
    rows = [read_answers(path) for path in answers.values()]
    equal = sum(all(found == alike[0] for found in alike) for alike in zip(*rows, strict=True))
    if equal < len(rows[0]):
        raise SystemExit(f"only {equal} of {len(rows[0])} answers are the same, a bug in batchgen")
    print(f"All {equal} answers are the same under {', '.join(answers)}.", flush=True)


def read_answers(path: Path) -> list[object]:
    """The choices of every output line, in the order of the input."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["response"]["body"]["choices"] for line in lines]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
