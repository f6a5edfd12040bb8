"""Tables of GPUs say what the newest results say, and what they do not; predictions are of the same
passes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from batchgen.hardware import load_gpu

ROOT = Path(__file__).parents[2]
PLACES = {
    "loads": ROOT / "benchmarks" / "gpu",
    "predict": ROOT / "benchmarks" / "gpu",
    "gpu_tables": ROOT / "docs",
}
PACKAGES = {"packages": {"torch": "2.11.0", "triton": "3.6.0"}}
CELL = {"cell": "qwen3-8b-512-512", "policy": "vllm", "rows": 40, "seats": 16, "kv_pages": 400}


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts, which import each other by name."""
    before = list(sys.path)
    found = {}
    for name, folder in PLACES.items():
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    yield found
    sys.path[:] = before
    for name in (*PLACES, "machine"):
        sys.modules.pop(name, None)


def window(rate: float, share: float) -> dict[str, float]:
    return {
        "passes": 3,
        "seconds": 2.0,
        "output_tokens_per_s": rate,
        "share_of_its_passes_bound": share,
        "median_pass_ms": 20.0,
        "median_bound_ms": 18.0,
    }


def write(folder: Path, gpu: str, day: str, commit: str, **pieces: Any) -> str:
    run = {
        "date": day,
        "commit": commit,
        "gpu": {"name": f"NVIDIA {gpu}"},
        "driver": {"driver_version": "1.2"},
        "machine": PACKAGES,
        "pieces": {
            label.replace("__", "/"): {"status": "done", "seconds": 1.0, "result": result}
            for label, result in pieces.items()
        },
    }
    path = folder / f"gpu-{gpu.lower()}-{day}-{commit}.json"
    path.write_text(json.dumps(run), encoding="utf-8")
    return path.name


def test_the_newest_run_of_each_gpu_counts(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    tables = scripts["gpu_tables"]
    older = write(tmp_path, "H200", "2026-01-01", "bbb", ceilings__all={}, tests__gpu={"n": 1})
    last = write(tmp_path, "H200", "2026-01-02", "aaa", tests__gpu={"n": 2})
    other = write(tmp_path, "H100", "2025-01-01", "ccc", tests__gpu={})
    runs = tables.newest(tmp_path)
    files = [[file["file"] for file in run["files"]] for run in runs]
    assert files == [[other], [last, older]]
    assert tables.result_of(runs[1], "tests/gpu") == {"n": 2}
    text = tables.where(runs, "../")
    assert "Measured on one NVIDIA H200, 2026-01-02, commit `aaa`" in text
    assert f"(../benchmarks/results/{last})): `tests/gpu`." in text
    assert f"(../benchmarks/results/{older})): `ceilings/all`." in text
    assert "`cells/qwen3-8b-512-512`" in tables.missing(runs)
    assert "Nothing is measured yet" in tables.where(tables.newest(tmp_path / "none"), "")


def test_what_is_not_measured_says_so(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    tables = scripts["gpu_tables"]
    kernel = {"kernel": "swiglu", "shape": "8 x 4", "ceiling": "device_copy", "target": 0.85}
    timed = {"seconds": 1e-4, "other": "silu, mul", "other_seconds": 2e-4}
    name = write(
        tmp_path,
        "H200",
        "2026-01-02",
        "aaa",
        ceilings__all={
            "ceilings": {
                "device_copy": {"unit": "B/s", "median": 4.3e12, "runs": [4.2e12, 4.3e12]},
                "disk_read": {"error": "no space"},
            }
        },
        kernels__small={
            "rows": [
                kernel | timed | {"share": 0.9},
                kernel | timed | {"share": 0.8},
                kernel | {"error": "OutOfMemoryError: a|b"},
            ]
        },
        **{
            "cells__qwen3-8b-512-512": CELL
            | {
                "steady": window(1000.0, 0.7),
                "steady_decode": window(1100.0, 0.7),
                "share_of_bound": 1.23,
            },
            "cells__mixtral-8x7b-512-512": CELL | {"steady": window(500.0, 0.59)},
        },
    )
    told = {"measured": 1000.0, "predicted": 1100.0, "error": 0.1}
    line = {"cell": "qwen3-8b-512-512", "costs": "roofline", "window": told}
    predicted = {"measured_in": name, "simulated": {"commit": "ddd"}, "cells": [line]}
    (tmp_path / "predicted-x.json").write_text(json.dumps(predicted), encoding="utf-8")
    runs = tables.newest(tmp_path)
    text = tables.ceilings(runs)
    assert "| H200 | copy on the device, read and written | 4,300.0 GB/s | 4,200.0 to" in text
    assert "| H200 | disk, reading | not measured |" in text
    text = tables.kernels(runs)
    assert "| 100.0 us | 90 % copy | 85 %, reached | silu, mul: 2.00 times as long |" in text
    assert "| 80 % copy | 85 %, **missed** |" in text
    assert "| not measured | OutOfMemoryError: a b | 85 % |" in text
    text = tables.cells(runs)
    assert "| `qwen3-8b-512-512` | 1,000 | 70 % | 65 %, reached |  | 20.0 / 18.0 ms | 16 |" in text
    assert "| `mixtral-8x7b-512-512` | 500 | 59 % | 60 %, **missed** |" in text
    assert "| `qwen3-8b-1024-1024` | not measured |" in text
    assert "1.23" not in text + tables.short(runs, tmp_path)
    text = tables.predicted(runs, tmp_path)
    assert "| 1,000 / 1,100 (+10.0 %) |" in text
    assert f"H200: simulated at commit `ddd`, beside `{name}`." in text
    (tmp_path / "predicted-x.json").unlink()
    text = tables.predicted(runs, tmp_path)
    assert "H200: nothing is predicted yet for `qwen3-8b-512-512`, `mixtral-8x7b-512-512`." in text
    (tmp_path / "predicted-x.json").write_text(json.dumps(predicted), encoding="utf-8")
    text = tables.short(runs, tmp_path)
    assert "| 1,000 | 70 % | 65 %, reached | +10.0 % | not predicted |" in text
    assert "1 of 3 lines of the kernel table with a target reach it" in text
    assert "Not measured: 6 of 8 cells" in text


def measured_as(predict: ModuleType, found: Any, seats: int) -> dict[str, Any]:
    """A cell that took exactly what was simulated."""
    full = found.decodes >= 0.8 * seats
    alone = full & (found.chunk_tokens == 0)
    cell: dict[str, Any] = {"passes": len(full)}
    for name, chosen in (("all", full | True), ("steady", full), ("steady_decode", alone)):
        seconds = float(found.took_s[chosen].sum())
        tokens = int(found.samples[chosen].sum())
        cell[name] = {
            "passes": int(chosen.sum()),
            "seconds": seconds,
            "output_tokens_per_s": tokens / seconds,
        }
    return cell


def test_a_cell_that_goes_as_simulated_has_no_error(scripts: dict[str, ModuleType]) -> None:
    predict, load = scripts["predict"], scripts["loads"].CELLS[CELL["cell"]]
    gpu = predict.gpu_of("NVIDIA H200")
    assert gpu == load_gpu("h200")
    found = predict.simulate(load, CELL | {"passes": 700}, gpu, "roofline")
    assert len(found.took_s) == 700
    assert found.decodes.max() == 16
    cell = CELL | measured_as(predict, found, 16)
    line = predict.compare(cell, found)
    assert {"decode", "filling", "window", "run"} <= set(line)
    for one in line.values():
        assert one["error"] == pytest.approx(0, abs=1e-9)
    slower = json.loads(json.dumps(cell))
    for name in ("all", "steady", "steady_decode"):
        slower[name]["seconds"] *= 2
        slower[name]["output_tokens_per_s"] /= 2
    line = predict.compare(slower, found)
    assert line["decode"]["error"] == pytest.approx(-0.5)
    assert line["window"]["error"] == pytest.approx(1.0)
    alone = found.decodes >= 0.8 * 16
    assert line["window"]["predicted"] == pytest.approx(
        found.samples[alone].sum() / found.took_s[alone].sum()
    )


def test_other_passes_are_refused(scripts: dict[str, ModuleType]) -> None:
    predict, load = scripts["predict"], scripts["loads"].CELLS[CELL["cell"]]
    found = predict.simulate(load, CELL | {"passes": 600}, load_gpu("h200"), "roofline")
    cell = CELL | measured_as(predict, found, 16)
    changed = predict.Columns(
        decodes=found.decodes,
        chunk_tokens=found.chunk_tokens,
        samples=np.maximum(found.samples - 1, 0),
        took_s=found.took_s,
    )
    with pytest.raises(ValueError, match="not the same passes"):
        predict.compare(cell, changed)


def test_predictions_are_kept_for_every_measured_cell(scripts: dict[str, ModuleType]) -> None:
    """As they were made: a blind prediction is not made again."""
    tables, predict = scripts["gpu_tables"], scripts["predict"]
    for run in tables.newest(tables.RESULTS):
        cells = [label for label in run["pieces"] if label.startswith("cells/")]
        measured = [run["pieces"][label]["result"]["cell"] for label in cells]
        told = tables.predictions(tables.RESULTS, run)
        kept = [one for found in told for one in found["cells"]]
        assert sorted((one["cell"], one["costs"]) for one in kept) == sorted(
            (cell, costs) for cell in measured for costs in predict.COSTS
        )


def test_a_peer_is_told_with_what_it_has_done(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    tables = scripts["gpu_tables"]
    system = {"tokens": 3200, "seconds": 4.0, "whole": True, "tokens_per_s": 800.0}
    cut = {"tokens": 900, "seconds": 9.0, "whole": False, "tokens_per_s": 100.0}
    cut |= {"version": "5.17.0", "attention": "paged|sdpa"}
    peer = {"load": "qwen3-8b-512-512", "rows": 64, "times": 8.0, "target": 5.0}
    peer |= {"batchgen": system, "transformers": cut}
    write(tmp_path, "H200", "2026-01-02", "aaa", peer__transformers=peer)
    write(tmp_path, "H100", "2026-01-02", "aaa", peer__transformers={"error": "no time"})
    text = tables.peers(tables.newest(tmp_path))
    assert "| H100 | not measured |" in text
    assert "| 800 (3,200, all) | 100 (900, cut after 9 s), version 5.17.0, attention" in text
    assert "| 8.0 (5, reached) |" in text
