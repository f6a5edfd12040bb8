"""The load of BatchGen's headline through the simulator: four policies, one table, one figure.

    python paper_figs/headline.py            runs (about a minute), then writes
        paper_figs/data/headline.csv         the numbers
        paper_figs/data/headline.pdf, .png   completion curves and where the GPU time goes
        README.md                            the table between the "headline" marks

10,000 requests, log-normal, means of 6.5K tokens in and 2.8K out, DeepSeek-R1 in FP8 on 128 H20 of
the cluster `h20-ib`, each policy in its best layout, with the same kernels for all. The source
publishes the means only; the widths (sigma 0.8 in, 0.6 out) and the seed are ours: wider than what
reproduces the published times (`batchgen bench published`).
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from batchgen.report.rundir import load_run
from batchgen.report.series import completion
from batchgen.report.style import KIND_COLOURS, KIND_HATCHES, figures, looks, time_unit
from batchgen.report.text import duration

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "paper_figs" / "data"
WORK = ROOT / "out" / "headline"
POLICIES = ("static", "orca", "vllm", "batchgen")
GENERATE = (
    "--rows", "10000", "--seed", "0",
    "--prompt-tokens", "lognormal:mean=6500,sigma=0.8",
    "--output-tokens", "lognormal:mean=2800,sigma=0.6",
)  # fmt: skip
SIMULATE = ("--model", "deepseek-r1", "--cluster", "h20-ib", "--gpus", "128")
COLUMNS = (
    "policy", "layout", "bct_s", "output_tokens_per_s", "gpu_hours", "busy_fraction", "decode_s",
    "mixed_s", "prefill_s", "idle_s", "tail10_s", "mean_decode_batch", "preemptions",
    "recomputed_tokens", "suspensions", "kv_peak_fraction", "passes", "steps",
)  # fmt: skip


def main() -> int:
    runs = simulate()
    DATA.mkdir(exist_ok=True)
    with (DATA / "headline.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**run, **_rounded(run)} for run in runs)
    draw(DATA / "headline")
    table = markdown(read_csv(DATA / "headline.csv"))
    put_into(ROOT / "README.md", table)
    print(table)
    return 0


def simulate() -> list[dict[str, Any]]:
    """Generate the load, run every policy, return the summaries."""
    WORK.mkdir(parents=True, exist_ok=True)
    trace = WORK / "load.jsonl.gz"
    _batchgen("trace", "generate", "-o", str(trace), "--force", *GENERATE)
    out = _batchgen(
        "sim", "--trace", str(trace), *SIMULATE, "--compare", ",".join(POLICIES),
        "--out", str(WORK / "runs"), "--force", "--json", "--progress", "off",
    )  # fmt: skip
    runs: list[dict[str, Any]] = json.loads(out)["runs"]
    return [run | {"layout": _layout(run)} for run in runs]


def _layout(run: dict[str, Any]) -> str:
    """The layout of a run, with the options of the plan that the search found beside it."""
    config = load_run(WORK / "runs" / run["policy"]).config
    found = (f"{name}={value}" for name, value in config["job"]["overrides"])
    return " ".join((run["layout"], *found))


def _batchgen(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "batchgen", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def _rounded(run: dict[str, Any]) -> dict[str, Any]:
    """Six digits are enough for a table and do not change with the last bits of a sum."""
    return {k: float(f"{v:.6g}") for k, v in run.items() if isinstance(v, float)}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(rows: list[dict[str, str]]) -> str:
    """The table of the README, in the order of the list of policies."""
    best = min(float(row["bct_s"]) for row in rows)
    heads = (
        "policy",
        "best layout",
        "batch completion time",
        "against the fastest",
        "output tokens/s",
        "prefill / mixed / decode / idle",
        "rows per decoding pass",
        "preempted, suspended",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        bct = float(row["bct_s"])
        kinds = ("prefill_s", "mixed_s", "decode_s", "idle_s")
        split = " / ".join(f"{float(row[kind]) / bct:.0%}" for kind in kinds)
        lines.append(
            f"| `{row['policy']}` | {row['layout']} | {duration(bct)} | {bct / best:.2f}x "
            f"| {float(row['output_tokens_per_s']):,.0f} | {split} "
            f"| {float(row['mean_decode_batch']):,.0f} "
            f"| {int(row['preemptions']):,}, {int(row['suspensions']):,} |"
        )
    return "\n".join(lines)


def put_into(path: Path, table: str) -> None:
    """Replace what stands between the marks."""
    text = path.read_text(encoding="utf-8")
    new, found = re.subn(
        r"(<!-- headline: .*?-->\n).*?(<!-- /headline -->)",
        lambda match: f"{match[1]}\n{table}\n\n{match[2]}",
        text,
        flags=re.DOTALL,
    )
    if found != 1:
        raise SystemExit(f"{path} has {found} pairs of headline marks, not one")
    path.write_text(new, encoding="utf-8")


def draw(path: Path) -> None:
    """Left: rows ended over time. Right: where the GPU time goes, as a share of GPUs x time."""
    records = [load_run(WORK / "runs" / policy) for policy in POLICIES]
    summaries = [
        json.loads((WORK / "runs" / policy / "summary.json").read_text()) for policy in POLICIES
    ]
    divisor, unit = time_unit(max(run["bct_s"] for run in summaries))
    with figures() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), width_ratios=(3, 2))
        figure.suptitle(
            f"{len(records[0].rows['row']):,} requests (BatchGen's headline load), "
            f"{records[0].model} on {records[0].num_gpus} x {records[0].gpu}, simulated",
            x=0.01, ha="left", fontsize=11, fontweight="bold",
        )  # fmt: skip
        for record, run, (colour, line) in zip(records, summaries, looks(POLICIES), strict=True):
            times, done = completion(record)
            left.plot(times / divisor, 100 * done, label=run["policy"], color=colour, ls=line)
        left.set(xlabel=f"time ({unit})", ylabel="rows ended (%)", xlim=(0, None), ylim=(0, 102))
        left.legend(loc="lower right")
        start = [0.0] * len(summaries)
        for kind in ("prefill", "mixed", "decode", "idle"):
            width = [run[f"{kind}_s"] / divisor for run in summaries]
            right.barh(
                POLICIES, width, left=start, label=kind,
                color=KIND_COLOURS[kind], hatch=KIND_HATCHES[kind], edgecolor="white",
            )  # fmt: skip
            start = [a + b for a, b in zip(start, width, strict=True)]
        right.invert_yaxis()
        right.set(xlabel=f"mean time of a GPU ({unit})")
        right.grid(axis="y", visible=False)
        right.legend(loc="lower right", fontsize=8)
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
