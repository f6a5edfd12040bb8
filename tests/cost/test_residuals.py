"""Errors by kind of run: the file is what the results say, and the nearest benchmark counts."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batchgen.cost import residuals
from batchgen.cost.residuals import Kind, find
from batchgen.report.metrics import summary
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

ROOT = Path(__file__).resolve().parents[2]
DENSE = Kind(costs="measured", gpu="h100", engine="vllm", model_kind="dense")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "residuals_script", ROOT / "benchmarks/residuals.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_file_is_that_of_the_results(script: ModuleType) -> None:
    document = script.collect()
    assert json.loads(script.TARGET.read_text()) == document
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.with_table(page, document["rows"]) == page


def test_a_run_without_a_benchmark_says_so() -> None:
    for costs in ("roofline", "profile"):
        found = find(replace(DENSE, costs=costs), residuals.load())
        if not found.source:
            assert found.what.startswith("none measured")
            assert found.p90 is None
    assert find(DENSE, []).what == "none measured of this kind of run (measured kernels)"


def test_kernels_that_a_run_has_not_do_not_count() -> None:
    rows = [row for row in residuals.load() if row["source"] == "bench costs"]
    dense = find(DENSE, rows)
    moe = find(replace(DENSE, model_kind="moe"), rows)
    guessed = find(replace(DENSE, guessed=True), rows)
    assert "experts" not in dense.what
    assert dense.p90 is not None
    assert moe.p90 is not None
    assert guessed.p90 is not None
    assert dense.p90 <= moe.p90  # more kernels, and the worst counts
    assert dense.p90 < guessed.p90
    latent = residuals.kernels(replace(DENSE, model_kind="latent", several_gpus=True))
    assert latent == ("gemm", "mla_decode", "mla_prefill", "experts", "collectives")
    known = {row["kernel"] for row in rows}
    assert set(latent) | set(residuals.kernels(DENSE)) <= known


def test_the_nearest_and_most_particular_counts(script: ModuleType, tmp_path: Path) -> None:
    def errors(p90: float) -> dict[str, Any]:
        return {"errors": {"count": 9, "median": p90 / 2, "p90": p90, "bias": 0.0}}

    engines = [
        {"what": "completion time", **errors(0.3)},
        {"what": "completion time", "engine": "vllm", "gpu": "h100", **errors(0.1)},
        {"what": "completion time", "engine": "sglang", **errors(0.9)},
        {"what": "nothing", "errors": {"count": 0, "median": None, "p90": None}},
        {"what": "nothing"},
    ]
    (tmp_path / "engines-2026-01-01.json").write_text(json.dumps({"rows": []}))
    (tmp_path / "engines-2026-02-01.json").write_text(json.dumps({"rows": engines}))
    rows = script.collect(tmp_path)["rows"]
    assert len(rows) == 3
    found = find(DENSE, rows)
    assert (found.p90, found.source, found.result) == (
        0.1,
        "bench engines",
        "engines-2026-02-01.json",
    )
    assert find(replace(DENSE, gpu="h20"), rows).p90 == 0.3
    assert find(replace(DENSE, engine="sglang", costs="roofline"), rows).p90 == 0.9


def test_a_copied_system_keeps_the_error_until_a_constant_is_changed(tmp_path: Path) -> None:
    text = (ROOT / "batchgen/catalog/systems/sglang-opt.yaml").read_text(encoding="utf-8")
    (tmp_path / "same.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text(text.replace("value: 0.46", "value: 0.6"))
    said = {}
    for name in ("same", "mine"):
        job = SimJob(
            trace=str(ROOT / "traces/azure-conv-2023.jsonl.gz"),
            limit=16,
            model="deepseek-r1",
            cluster="h20-ib",
            gpus=16,
            layout="dpa16+ep16",
            policy=str(tmp_path / f"{name}.yaml"),
        )
        said[name] = summary(simulate(job))["residual"]
    assert said["same"]["source"] == "bench published"
    assert said["mine"]["p90"] is None
    assert "constants" in said["mine"]["what"]
