"""Tables of what was measured on GPUs, from benchmarks/results; `make_tables.py` writes them.

A piece counts as the newest `gpu-*.json` of its GPU that has it says, and predictions as the
`predicted-*.json` that was made of that file. A run is all that counts of one GPU; every page says
which file a piece is of, and a cell that no file has says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"))
from loads import CELLS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "not measured"
TARGETS = {"mixtral-8x7b": 0.60}  # shares of the phase-sum bound; others:
TARGET = 0.65
CEILINGS = {
    "device_copy": "copy on the device, read and written",
    "matmul_bf16": "bf16 product of 8192",
    "to_device": "pinned memory to the device",
    "from_device": "device to pinned memory",
    "both_ways": "both at once",
    "host_copy": "copy in host memory, read and written",
    "disk_write": "disk, writing",
    "disk_read": "disk, reading",
}
# Of a run, beside kernels and cells.
WHOLE_PIECES = ("tests/kernels", "tests/gpu", "ceilings/all", "peer/transformers", "profile/small")

Run = Mapping[str, Any]


def newest(folder: Path) -> list[dict[str, Any]]:
    """What counts of each GPU, by its name: `pieces`, each from the latest file that has it, and
    `files`, those that count, with theirs `labels`."""
    files = [
        json.loads(path.read_text(encoding="utf-8")) | {"file": path.name}
        for path in folder.glob("gpu-*.json")
    ]
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(files, key=_when):
        run = found.setdefault(file["gpu"]["name"], {"gpu": file["gpu"], "pieces": {}, "of": {}})
        run["pieces"] |= file["pieces"]
        run["of"] |= dict.fromkeys(file["pieces"], file["file"])
    for run in found.values():
        kept = sorted((file for file in files if file["file"] in run["of"].values()), key=_when)
        run["files"] = [
            file | {"labels": [k for k, of in run["of"].items() if of == file["file"]]}
            for file in reversed(kept)
        ]
    return [found[name] for name in sorted(found)]


def _when(run: Run) -> tuple[str, str]:
    return run["date"], run.get("time", "")


def predictions(folder: Path, run: Run) -> list[dict[str, Any]]:
    """Those that were made of the files of a run, with the cells that count."""
    told = {}
    for path in sorted(folder.glob("predicted-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        told[found["measured_in"]] = found
    kept = []
    for file in run["files"]:
        found = told.get(file["file"])
        if found is not None:
            cells = [one for one in found["cells"] if f"cells/{one['cell']}" in file["labels"]]
            kept.append(found | {"cells": cells})
    return [found for found in kept if found["cells"]]


def result_of(run: Run, label: str) -> dict[str, Any]:
    """What a piece gave; {} where it gave nothing."""
    return run["pieces"].get(label, {}).get("result") or {}


def where(runs: Sequence[Run], up: str) -> str:
    """A line for each file: which GPU, when, which commit and versions, and what is of it."""
    if not runs:
        return "Nothing is measured yet: benchmarks/results has no `gpu-*.json`."
    lines = []
    for file in (file for run in runs for file in run["files"]):
        packages = file["machine"]["packages"]
        versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "triton"))
        driver = file["driver"].get("driver_version", "unknown")
        lines.append(
            f"- Measured on one {file['gpu']['name']}, {file['date']}, commit "
            f"`{file['commit'][:10]}`, {versions}, driver {driver} "
            f"([result]({up}benchmarks/results/{file['file']})): "
            f"{', '.join(f'`{label}`' for label in file['labels'])}."
        )
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def kernel_lines(run: Run) -> list[dict[str, Any]]:
    """The kernel table of a run, all groups."""
    labels = [label for label in run["pieces"] if label.startswith("kernels/")]
    return [one for label in labels for one in result_of(run, label).get("rows", ())]


def ceilings(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        found = result_of(run, "ceilings/all").get("ceilings", {})
        for name, what in CEILINGS.items():
            one = found.get(name, {})
            if "median" not in one:
                rows.append([_gpu(run), what, NOT_MEASURED, ""])
                continue
            unit, scale = {"B/s": ("GB/s", 1e9), "FLOP/s": ("TFLOP/s", 1e12)}[one["unit"]]
            low, high = min(one["runs"]) / scale, max(one["runs"]) / scale
            middle = f"{one['median'] / scale:,.1f} {unit}"
            rows.append([_gpu(run), what, middle, f"{low:,.1f} to {high:,.1f}"])
    return table(["GPU", "ceiling", "median", "all runs"], rows)


def kernels(runs: Sequence[Run]) -> str:
    rows = [
        [_gpu(run), f"`{one['kernel']}`", one["shape"], *_kernel(one)]
        for run in runs
        for one in kernel_lines(run)
    ]
    return table(
        ["GPU", "kernel", "shape", "time", "share of", "target", "torch's way"],
        rows,
    )


def _kernel(one: Mapping[str, Any]) -> list[str]:
    target = f"{_percent(one['target'])}" if one.get("target") else ""
    if "seconds" not in one:
        return [NOT_MEASURED, one["error"].replace("|", " ")[:80], target, ""]
    if target:
        target += ", reached" if one["share"] >= one["target"] else ", **missed**"
    other = ""
    if "other_seconds" in one:
        times = one["other_seconds"] / one["seconds"]
        other = f"{one['other']}: {times:.2f} times as long"
    ceiling = {"device_copy": "copy", "matmul_bf16": "product"}[one["ceiling"]]
    return [f"{one['seconds'] * 1e6:,.1f} us", f"{_percent(one['share'])} {ceiling}", target, other]


def cells(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for name, load in CELLS.items():
            one = result_of(run, f"cells/{name}")
            target = TARGETS.get(load.model, TARGET)
            rows.append([_gpu(run), f"`{name}`", *_cell(one, target)])
    head = ["GPU", "cell", "output tokens/s", "of its passes' bound", "target"]
    return table([*head, "of the job's bound", "decode pass: median / bound", "seats"], rows)


def _cell(one: Mapping[str, Any], target: float) -> list[str]:
    steady = one.get("steady")
    if steady is None:
        return [NOT_MEASURED, "", _percent(target), "", "", ""]
    share = steady["share_of_its_passes_bound"]
    word = "reached" if share >= target else "**missed**"
    alone = one.get("steady_decode")
    times = f"{alone['median_pass_ms']:.1f} / {alone['median_bound_ms']:.1f} ms" if alone else ""
    rate, seats = f"{steady['output_tokens_per_s']:,.0f}", f"{one['seats']:,}"
    job = one.get("job", {}).get("share")
    whole = "" if job is None else _percent(job)
    return [rate, _percent(share), f"{_percent(target)}, {word}", whole, times, seats]


def peers(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        one = result_of(run, "peer/transformers")
        if "times" not in one:
            rows.append([_gpu(run), NOT_MEASURED, "", "", ""])
            continue
        told = []
        for name in ("batchgen", "transformers"):
            system = one[name]
            end = "all" if system["whole"] else f"cut after {system['seconds']:.0f} s"
            told.append(f"{system['tokens_per_s']:,.0f} ({system['tokens']:,}, {end})")
        word = "reached" if one["times"] >= one["target"] else "**missed**"
        load = f"{one['rows']} rows of `{one['load']}`"
        target = f"{one['times']:.1f} ({one['target']:.0f}, {word})"
        version, attention = one["transformers"]["version"], one["transformers"]["attention"]
        told[1] += f", version {version}, attention `{attention.replace('|', ', ')}`"
        rows.append([_gpu(run), load, *told, target])
    head = ["GPU", "load", "output tokens/s (tokens)", "of transformers"]
    return table([*head, "times as fast (target)"], rows)


def predicted(runs: Sequence[Run], folder: Path) -> str:
    rows, lines = [], []
    for run in runs:
        told = predictions(folder, run)
        for one in (one for found in told for one in found["cells"]):
            shown = [_pair(one.get(kind), 1) for kind in ("decode", "mixed", "filling")]
            shown += [_pair(one.get(kind), 0) for kind in ("window", "run")]
            rows.append([_gpu(run), f"`{one['cell']}`", one["costs"], *shown])
        for found in told:
            made = f"simulated at commit `{found['simulated']['commit'][:10]}`"
            lines.append(f"{_gpu(run)}: {made}, beside `{found['measured_in']}`.")
        known = {one["cell"] for found in told for one in found["cells"]}
        open_cells = [
            name
            for name in CELLS
            if result_of(run, f"cells/{name}").get("steady") and name not in known
        ]
        if open_cells:
            names = ", ".join(f"`{name}`" for name in open_cells)
            lines.append(f"{_gpu(run)}: nothing is predicted yet for {names}.")
    head = ["GPU", "cell", "costs", "decode pass, ms", "mixed pass, ms", "filling pass, ms"]
    whole = table([*head, "output tokens/s, window", "whole run"], rows)
    return "\n\n".join([whole, "\n".join(lines)])


def _pair(one: Mapping[str, float] | None, digits: int) -> str:
    if one is None:
        return ""
    both = f"{one['measured']:,.{digits}f} / {one['predicted']:,.{digits}f}"
    return f"{both} ({100 * one['error']:+.1f} %)"


def missing(runs: Sequence[Run]) -> str:
    """What the runs have nothing of."""
    lines = []
    for run in runs:
        labels = [*WHOLE_PIECES, *(f"cells/{name}" for name in CELLS)]
        ends = {label: run["pieces"].get(label, {}).get("status", "") for label in labels}
        parts = [
            f"{text}: {', '.join(f'`{label}`' for label in found)}"
            for text, found in (
                ("not part of the run", [label for label in labels if not ends[label]]),
                ("failed or cut", [k for k, v in ends.items() if v not in ("", "done")]),
            )
            if found
        ]
        lines.append(f"- {_gpu(run)}: {'; '.join(parts) or 'everything was run'}.")
    return "\n".join(lines)


def short(runs: Sequence[Run], folder: Path) -> str:
    """The README's: cells that were measured, how far predictions were off, how many kernels reach
    their targets."""
    rows = []
    for run in runs:
        told = [one for found in predictions(folder, run) for one in found["cells"]]
        for name, load in CELLS.items():
            one = result_of(run, f"cells/{name}")
            if one.get("steady") is None:
                continue
            errors = {line["costs"]: line for line in told if line["cell"] == name}
            off = [_error(errors.get(costs)) for costs in ("roofline", "measured")]
            rate, share, target, *_ = _cell(one, TARGETS.get(load.model, TARGET))
            rows.append([_gpu(run), f"`{name}`", rate, share, target, *off])
    head = ["GPU", "cell", "output tokens/s", "of its passes' bound", "target"]
    off_heads = ["`sim`, roofline", "`sim --costs measured`"]
    return "\n\n".join(part for part in (table([*head, *off_heads], rows), *_counted(runs)) if part)


def _error(line: Mapping[str, Any] | None) -> str:
    return "not predicted" if line is None else f"{100 * line['window']['error']:+.1f} %"


def _counted(runs: Sequence[Run]) -> list[str]:
    texts = []
    for run in runs:
        aimed = [one for one in kernel_lines(run) if one.get("target")]
        reached = [one for one in aimed if one.get("share", 0.0) >= one["target"]]
        open_cells = [n for n in CELLS if result_of(run, f"cells/{n}").get("steady") is None]
        names = f" ({', '.join(f'`{name}`' for name in open_cells)})" if open_cells else ""
        texts.append(
            f"{_gpu(run)}: {len(reached)} of {len(aimed)} lines of the kernel table with a target "
            "reach it ([table](docs/gpu.md#kernels)). "
            f"Not measured: {len(open_cells)} of {len(CELLS)} cells{names}."
        )
    return texts


def _gpu(run: Run) -> str:
    return str(run["gpu"]["name"]).removeprefix("NVIDIA ")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def marks(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """What to write between which marks of which file."""
    runs = newest(folder)
    return {
        "README.md": {
            "gpu": lambda: f"{short(runs, folder)}\n\n{where(runs, '')}",
        },
        "docs/gpu.md": {
            "gpu-where": lambda: f"{where(runs, '../')}\n\n{missing(runs)}".strip(),
            "gpu-ceilings": lambda: ceilings(runs),
            "gpu-kernels": lambda: kernels(runs),
            "gpu-cells": lambda: cells(runs),
            "gpu-peers": lambda: peers(runs),
            "gpu-predicted": lambda: predicted(runs, folder),
        },
    }
