"""Ready and running rows move to other engines when one is slow, lost or too full."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batchgen.machine import advisor_of_job
from batchgen.replay import replay
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

TRACE = str(Path(__file__).parents[2] / "traces" / "servegen-deepseek-r1.jsonl.gz")
JOB = SimJob(trace=TRACE, model="llama-3.1-8b", gpu="a100-80g", gpus=16, limit=600)


def faults(path: Path, *lines: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_slow_engine_yields_its_rows_to_the_others(tmp_path: Path) -> None:
    slow = faults(tmp_path / "f.jsonl", {"at_s": 5, "kind": "slow", "gpu": 3, "factor": 20})
    healthy = simulate(JOB)
    moved = simulate(replace(JOB, faults=slow))
    stayed = simulate(replace(JOB, faults=slow, overrides=(("placement.steal", "false"),)))
    bct = {
        name: int(record.rows["end_ps"].max())
        for name, record in (("healthy", healthy), ("moved", moved), ("stayed", stayed))
    }
    assert bct["moved"] < 0.9 * bct["stayed"]
    assert bct["moved"] < 1.1 * bct["healthy"]
    assert any(mark["kind"] == "copy" for mark in moved.marks)
    assert int(moved.rows["migrations"].sum()) > 0
    for record in (moved, stayed):
        assert set(record.row_reasons) <= {"stop", "length"}
        np.testing.assert_array_equal(record.rows["output_tokens"], healthy.rows["output_tokens"])


@pytest.mark.parametrize("policy", ["vllm", "batchgen"])
def test_trouble_of_every_kind_loses_no_row_and_replays(tmp_path: Path, policy: str) -> None:
    trouble = faults(
        tmp_path / "f.jsonl",
        {"at_s": 3, "kind": "slow", "gpu": 3, "factor": 3, "for_s": 20},
        {"at_s": 6, "kind": "lost", "gpu": 5},
        {"at_s": 8, "kind": "notice", "gpu": 9, "deadline_s": 9},
        {"at_s": 9, "kind": "lost", "gpu": 9},
        {"at_s": 20, "kind": "back", "gpu": 5},
    )
    record = simulate(replace(JOB, faults=trouble, policy=policy, log="full", limit=300))
    assert set(record.row_reasons) <= {"stop", "length"}
    assert int(record.rows["output_tokens"].sum()) == int(
        simulate(replace(JOB, policy=policy, limit=300)).rows["output_tokens"].sum()
    )
    assert record.decisions is not None
    lines = gzip.decompress(b"".join(record.decisions)).splitlines()
    report = replay(lines, advisor=advisor_of_job(record.config["job"]))
    assert report.events == record.config["events"]
