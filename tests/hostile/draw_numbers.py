"""Numbers of every option, far out of range, or a file with some."""

from __future__ import annotations

import dataclasses
from random import Random

from draw_files import in_files
from drawing import NUMBERS, OUT, RUN, SIM, TRACE
from trying import Case, Place

from batchgen.cost.efficiency import Efficiency
from batchgen.planning import PlanOptions
from batchgen.policy.presets import PARTS, part_class

NONE = ("--progress", "off")
MAKE = ("trace", "generate", "-o", "o.jsonl", "-n", "9", "--part", "1 / constant:9 / constant:3")
LOST = ("trace", "devices", "generate", "-o", "o.jsonl")
AGREE = ("validate", "agreement", "--model", "m", "-i", "in.jsonl", "--policies", "vllm")
SERVE = ("serve", "--model", "m", "--state", "old.jsonl")  # a file: refused in any case
BOUND = ("bench", "bound", "--model", "llama-3.1-8b")
BOUNDS = (*BOUND, "--seats", "4", "--tflops", "1", "--gb-per-s", "9", "--prompt-tokens", "5")

# Command, options that take a number, what it may write.
COMMANDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((*TRACE, *SIM), ("--max-output-tokens", "--seed", "--limit", "--gpus", "--gpus-per-node")),
    (
        (*TRACE, "--model", "llama-3.1-8b", "--gpu", "h100", "--layout", "rule"),
        ("--gpus", "--gpus-per-node"),
    ),
    (
        RUN,
        (
            "--max-tokens",
            "--temperature",
            "--seed",
            "--limit",
            "--shard",
            "--hbm-pages",
            "--host-pages",
            "--threads",
            "--max-errors",
            "--row-timeout",
        ),
    ),
    (
        (*RUN[:5], "--dry-run"),
        ("--expected-tokens", "--price-per-hour", "--threads", "--max-tokens"),
    ),
    (
        (
            "plan",
            "--trace",
            "t.jsonl",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h100",
            "--gpus",
            "2",
            "--workers",
            "1",
        ),
        (
            "--gpus",
            "--gpus-per-node",
            "--deadline",
            "--limit",
            "--seed",
            "--max-output-tokens",
            "--workers",
        ),
    ),
    (("sweep", "s.yaml", "--out", "o.jsonl"), ("--workers",)),
    (
        MAKE,
        ("-n", "--seed", "--samples", "--rate", "--expert-skew", "--rounds", "--wait-s"),
    ),
    (
        (
            *MAKE,
            "--rounds",
            "3",
            "--follow-up-tokens",
            "constant:4",
            "--round-output-tokens",
            "constant:3",
        ),
        ("--rounds", "--wait-s"),
    ),
    (
        ("trace", "import", "t.jsonl", "-o", "o.jsonl"),
        ("--limit", "--requests", "--seed", "--start-s", "--duration-s", "--rate-scale"),
    ),
    ((*LOST, "--gpus", "16"), ("--gpus", "--gpus-per-node", "--hours", "--seed")),
    (
        ("trace", "devices", "import", "d.jsonl", "-o", "o.jsonl"),
        ("--gpus", "--gpus-per-node", "--start-s", "--duration-s", "--notice-s", "--seed"),
    ),
    (AGREE, ("--max-tokens", "--hbm-pages", "--rate", "--cancel", "--seed", "--limit")),
    (("profile", "-o", "keep/none/p.json"), ("--page-tokens", "--threads")),
    (
        SERVE,
        (
            "--port",
            "--max-tokens",
            "--temperature",
            "--seed",
            "--hbm-pages",
            "--host-pages",
            "--threads",
            "--slice",
            "--max-batches",
            "--max-requests",
            "--max-file-mb",
            "--max-stored-gb",
        ),
    ),
    (
        BOUNDS,
        (
            "--seats",
            "--tflops",
            "--gb-per-s",
            "--prompt-tokens",
            "--output-tokens",
            "--rows",
            "--token-budget",
        ),
    ),
    (
        (*BOUND, "--seats", "4", "--tflops", "1", "--gb-per-s", "9", "--trace", "t.jsonl"),
        ("--token-budget", "--limit", "--seats"),
    ),
    (
        ("bench", "blend", "--rows", "40", "--only", "1.4:0.35"),
        ("--video-tokens", "--only", "--seed"),
    ),
    (("policy", "check", "order.arrival", "--cases", "1"), ("--seed", "--timeout-s")),
    (("model", "init", "o.jsonl"), ("--seed",)),
)
TEMPLATES = {
    "--layout": ("tp{}", "dp{}", "tp{}+pp{}", "dpa{}+ep{}", "tp1,dp{}", "tp2+pp{},dp{}", "{}"),
    "--part": (
        "{} / constant:9 / constant:9",
        "1 / constant:{} / constant:9",
        "1 / lognormal:mean={},sigma=1 / constant:9",
        "1 / lognormal:mean=9,sigma={} / constant:9",
        "1 / lognormal:mean=9,sigma=1,max={} / constant:9",
        "1 / pareto:mean={},alpha=2 / constant:9",
        "1 / pareto:mean=9,alpha={} / constant:9",
        "1 / P{} 9, P99 90 / constant:9",
        "1 / P50 {}, P99 90, max 100 / constant:9",
        "1 / P50 9, P99 90, max {} / constant:9",
        "1 / P50 9, P99 90, mean {} / constant:9",
        "1 / {}*constant:9 + 0.5*constant:5 / constant:9",
        "1 / 0.5*constant:9 + {}*lognormal:mean=9,sigma={} / constant:9",
    ),
}


def option_names() -> list[str]:
    """All numbers that `--set` knows."""
    found = [f"plan.{field.name}" for field in dataclasses.fields(PlanOptions)]
    found += [f"cost.{field.name}" for field in dataclasses.fields(Efficiency)]
    for slot, parts in PARTS.items():
        for part in parts:
            found += [f"{slot}.{f.name}" for f in dataclasses.fields(part_class(slot, part).Config)]
    return sorted(set(found))


SETTINGS = option_names()
RATES = ("failures.mtbf_gpu_h", "slow.gpu_per_h", "spot.node_per_h", "host.mean_s", "skew.step_s")
RATES += ("failures.repair_sigma", "spread.sd", "spot.burst_nodes", "spot.most_nodes", "skew.sd")


def draw(rng: Random, place: Place) -> Case:
    """One command with one hostile number, or a file with some."""
    which = rng.random()
    number = rng.choice(NUMBERS)
    if which < 0.5:
        argv, options = rng.choice(COMMANDS)
        option = rng.choice(options)
        text = number + rng.choice(("", "s", "h", "d", "x")) if option == "--deadline" else number
        if option == "--shard":
            text = f"{number}/{rng.choice(NUMBERS)}"
        if option == "--max-errors" and rng.random() < 0.5:
            text += "%"
        if option == "--only":
            text = f"{number}:{rng.choice(NUMBERS)}"
        return Case(
            argv=(*argv, f"{option}={text}" if option[1] == "-" else f"{option}{text}"), outputs=OUT
        )
    if which < 0.65:
        setting = f"{rng.choice(SETTINGS)}={number}"
        base = rng.choice(((*TRACE, *SIM), RUN))
        return Case(argv=(*base, "--set", setting), outputs=OUT)
    if which < 0.7:
        text = rng.choice(TEMPLATES["--layout"]).replace("{}", number)
        return Case(
            argv=(
                *TRACE,
                "--model",
                rng.choice(("llama-3.1-8b", "deepseek-r1")),
                "--gpus",
                "16",
                f"--layout={text}",
            )
        )
    if which < 0.8:
        text = rng.choice(TEMPLATES["--part"])
        while "{}" in text:
            text = text.replace("{}", rng.choice(NUMBERS), 1)
        return Case(
            argv=("trace", "generate", "-o", "o.jsonl", "-n", "9", f"--part={text}"), outputs=OUT
        )
    if which < 0.83:
        return Case(
            argv=(
                *LOST,
                "--gpus",
                "16",
                "--kinds",
                "failures,spread,slow,spot,skew,host",
                "--set",
                f"{rng.choice(RATES)}={number}",
            ),
            outputs=OUT,
        )
    if which < 0.86:
        name = rng.choice(("h100", "h20-ib", "none", number))
        return Case(
            argv=(
                "plan",
                "--trace",
                "t.jsonl",
                "--model",
                "llama-3.1-8b",
                "--gpus",
                "2",
                "--deadline",
                "1h",
                "--among",
                "h100",
                "--price",
                f"{name}={number}",
                "--workers",
                "1",
            ),
        )
    return in_files(rng, place)
