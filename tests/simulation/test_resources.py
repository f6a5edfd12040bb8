"""What a run is limited by: loads that wait for one thing alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.report.limits import IDLE, RESOURCES, limiting, remarks, shares
from batchgen.report.metrics import busy_fraction
from batchgen.report.record import RunRecord
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.trace.table import make_trace


def run(path: Path, rows: int, prompt: int, output: int, **job: Any) -> RunRecord:
    file = path / "trace.jsonl"
    file.write_text('{"prompt_tokens": 5, "output_tokens": 5}\n')
    trace = make_trace(
        name="alike", prompt_tokens=np.full(rows, prompt), output_tokens=np.full(rows, output)
    )
    given: dict[str, Any] = {"model": "qwen3-8b", "gpu": "h100", "gpus": 1, "policy": "vllm"}
    return simulate(SimJob(trace=str(file), **(given | job)), trace=trace)


CASES = {
    "compute": {"rows": 64, "prompt": 4000, "output": 1},
    "memory": {"rows": 4, "prompt": 100, "output": 400},
    "host_link": {
        "rows": 4,
        "prompt": 50,
        "output": 20,
        "model": "mixtral-8x7b",
        "gpu": "a5000",
        "layout": "dp1",
        "overrides": (("plan.weights", "experts"),),
    },
    "cpu": {
        "rows": 64,
        "prompt": 4000,
        "output": 100,
        "overrides": (("plan.kv", "host"), ("plan.attention", "cpu")),
    },
    "links": {
        "rows": 64,
        "prompt": 2000,
        "output": 1,
        "gpu": "rtx-4090",
        "gpus": 4,
        "layout": "tp4",
    },
    "launches": {"rows": 1, "prompt": 1, "output": 50, "overrides": (("cost.step_s", "1"),)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_resource_of_a_load_that_needs_one(tmp_path: Path, name: str) -> None:
    record = run(tmp_path, **CASES[name])  # type: ignore[arg-type]
    found = shares(record)
    assert limiting(record) == RESOURCES[name], found
    assert sum(found.values()) == pytest.approx(1)
    assert found[IDLE] == pytest.approx(1 - (busy_fraction(record) or 0))
    counted = sum(record.config["resources_s"].values())
    assert counted == pytest.approx((1 - found[IDLE]) * record.rows["end_ps"].max() / 1e12, rel=0.1)


def test_pipelines_count_every_stage_once(tmp_path: Path) -> None:
    record = run(tmp_path, rows=64, prompt=1000, output=50, gpus=4, layout="tp2+pp2")
    busy_s = (busy_fraction(record) or 0) * record.rows["end_ps"].max() / 1e12
    assert sum(record.config["resources_s"].values()) == pytest.approx(busy_s, rel=0.1)


def test_a_long_row_is_remarked(tmp_path: Path) -> None:
    record = run(tmp_path, rows=1, prompt=10, output=100)
    assert any("longest row alone" in line for line in remarks(record, 1.0))
    assert "memory for KV is full at the peak" in remarks(record, 1.0)
    assert "memory for KV is full at the peak" not in remarks(record, 0.5)


def test_a_machine_that_waits_says_for_what(tmp_path: Path) -> None:
    """Two engines, one row: one of them has nothing to do."""
    record = run(tmp_path, rows=1, prompt=10, output=100, gpus=4, layout="dp4")
    assert next(iter(shares(record))) == IDLE
    assert (limiting(record) or "").startswith("GPUs that wait")
