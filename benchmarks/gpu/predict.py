"""Measured cells of throughput beside what the simulator says of them: a test of its costs.

    python benchmarks/gpu/predict.py [benchmarks/results/gpu-....json] --out predictions.json

Rows, seats, KV pages, budget and policy are those of the cell. The scheduler is the same code and
asks no clock under `vllm`, so pass number k holds the same rows in both; the counts of the cell are
compared, and a cell whose passes differ is refused. Costs are those of `batchgen sim` for the GPU
of the file: its roofline and its measured kernels. Nothing is fitted to the cells.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import machine
from loads import CELLS, DEPTH, FULL, MODELS, PAGE_TOKENS, TOKEN_BUDGET, Load, lengths

from batchgen.catalog.hf_config import spec_from_config
from batchgen.cost.build import build_cost
from batchgen.hardware import GpuSpec, load_gpu
from batchgen.layout import parse_layout
from batchgen.plan import EngineSpec, Plan
from batchgen.policy.presets import CAPABILITIES, build_policy, find_preset
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table
from batchgen.sim.cluster import Simulation
from batchgen.sim.setup import schedule_arrivals
from batchgen.simjob import COSTS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Passes with most seats taken, without prompts and with; all others, while the batch fills.
KINDS = {"decode": (2, None), "mixed": (1, 2), "filling": (0, 1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Of each pass: rows that decode, prompt tokens, tokens sampled, seconds since the last."""

    decodes: npt.NDArray[np.int64]
    chunk_tokens: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int64]
    took_s: npt.NDArray[np.float64]


def gpu_of(name: str) -> GpuSpec:
    """The catalog's GPU of what the driver calls one: "NVIDIA H200" is h200."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return load_gpu(next(word for word in words if re.search(r"\d", word)))


def simulate(load: Load, cell: dict[str, Any], gpu: GpuSpec, costs: str) -> Columns:
    """The first passes of a cell, as many as were measured."""
    model = spec_from_config(MODELS[load.model], name=load.model, place="cells")
    layout, preset = parse_layout("tp1", 1), find_preset(cell["policy"])
    prompts, outputs = lengths(load, cell["rows"])
    plan = Plan(
        page_tokens=PAGE_TOKENS,
        boundary=preset.boundary,
        engines=(EngineSpec(engine=0, node=0, hbm_pages=cell["kv_pages"]),),
        token_budget=TOKEN_BUDGET,
        max_num_seqs=cell["seats"],
        max_context=model.max_context,
        depth=DEPTH,
    )
    table = Table(prompts.tolist(), outputs.tolist())
    runtime = Runtime(table, plan, build_policy(preset, {}, CAPABILITIES), reference=True)
    cost = build_cost(model, gpu, layout, costs=costs)
    simulation = Simulation(runtime, table, plan, cost, outputs.astype(np.int32))
    schedule_arrivals(simulation, np.zeros(len(table), np.int64))
    simulation.run()
    steps = simulation.recorder.steps(cost)
    assert (steps["passes"] == 1).all()
    ends = steps["start_ps"] + steps["duration_ps"]
    measured = slice(cell["passes"])
    return Columns(
        decodes=steps["running"][measured],
        chunk_tokens=steps["prompt_tokens"][measured],
        samples=steps["output_tokens"][measured],
        took_s=np.diff(ends, prepend=0)[measured] / 1e12,
    )


def compare(cell: dict[str, Any], found: Columns) -> dict[str, Any]:
    """Seconds per pass by kind, and rates; raises ValueError where the passes are not the same."""
    full = found.decodes >= FULL * cell["seats"]
    alone = full & (found.chunk_tokens == 0)
    sums = {}
    for name, chosen in (("all", full | True), ("steady", full), ("steady_decode", alone)):
        told = cell.get(name, {"passes": 0, "seconds": 0.0, "output_tokens_per_s": 0.0})
        ours = int(chosen.sum()), int(found.samples[chosen].sum())
        theirs = told["passes"], round(told["output_tokens_per_s"] * told["seconds"])
        if ours != theirs:
            raise ValueError(
                f"{cell['cell']}: {name}: {theirs} (passes, tokens) were measured, "
                f"{ours} simulated: not the same passes"
            )
        sums[name] = (*ours, told["seconds"], float(found.took_s[chosen].sum()))
    passes, tokens, measured_s, predicted_s = (
        np.array(column) for column in zip(*sums.values(), strict=True)
    )
    line: dict[str, Any] = {}
    for kind, (whole, without) in KINDS.items():
        count, real, ours_s = (
            column[whole] - (0 if without is None else column[without])
            for column in (passes, measured_s, predicted_s)
        )
        if count:
            line[kind] = {"passes": int(count)} | beside(1e3 * real / count, 1e3 * ours_s / count)
    for name, at in (("window", 1), ("run", 0)):
        if passes[at]:
            line[name] = beside(tokens[at] / measured_s[at], tokens[at] / predicted_s[at])
    return line


def beside(measured: float, predicted: float) -> dict[str, float]:
    """Both, and by how much the prediction is off."""
    return {
        "measured": float(measured),
        "predicted": float(predicted),
        "error": float(predicted / measured - 1),
    }


def newest(folder: Path = RESULTS) -> Path:
    """The file of the latest `make gpu-check` that is there."""
    files = [
        (whole["date"], whole.get("time", ""), path)
        for path in folder.glob("gpu-*.json")
        for whole in [json.loads(path.read_text(encoding="utf-8"))]
    ]
    if not files:
        raise SystemExit(f"{folder} has no gpu-*.json")
    return max(files)[-1]


def document(path: Path) -> dict[str, Any]:
    """Every cell of a file under every kind of costs."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    gpu = gpu_of(whole["gpu"]["name"])
    lines = []
    for entry in whole["pieces"].values():
        cell = entry.get("result") or {}
        if "cell" not in cell or "all" not in cell:
            continue
        for costs in COSTS:
            found = simulate(CELLS[cell["cell"]], cell, gpu, costs)
            lines.append({"cell": cell["cell"], "costs": costs} | compare(cell, found))
    return {
        "schema": 1,
        "benchmark": "gpu predictions",
        "measured_in": path.name,
        "gpu": whole["gpu"]["name"],
        "simulated": machine.commit(),
        "units": {
            "decode, mixed, filling": "ms per pass, mean",
            "window, run": "output tokens/s",
            "error": "predicted / measured - 1",
        },
        "cells": lines,
    }


def show(line: dict[str, Any]) -> str:
    parts = [
        f"{name} {line[name]['measured']:,.1f} / {line[name]['predicted']:,.1f} "
        f"({100 * line[name]['error']:+.1f} %)"
        for name in (*KINDS, "window", "run")
        if name in line
    ]
    return f"{line['cell']}, {line['costs']}: " + ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="of make gpu-check; default: newest")
    parser.add_argument("--out", type=Path, help="default: predicted-....json beside the file")
    options = parser.parse_args()
    path = options.file or newest()
    told = document(path)
    out = options.out or path.with_name(f"predicted-{path.name.removeprefix('gpu-')}")
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print("measured / predicted: ms per pass, output tokens/s")
    for line in told["cells"]:
        print(show(line))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
