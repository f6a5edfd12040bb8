"""Arrivals and troubles are scheduled one after the other: the same run, with a short queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.sim import setup
from batchgen.sim.cluster import Simulation
from batchgen.sim.run import simulate
from batchgen.sim.setup import set_up
from batchgen.simjob import SimJob
from batchgen.trace.table import Trace, make_trace

ROWS = 300


def input_of(path: Path, **given: Any) -> tuple[SimJob, Trace]:
    """Rows that come two at a time, with a GPU lost, back and slow at the times of some of them."""
    (path / "trace.jsonl").write_text('{"prompt_tokens": 5, "output_tokens": 5}\n')
    lines: list[dict[str, Any]] = [
        {"at_s": at, "kind": "lost", "gpu": at % 4, "for_s": 3} for at in range(10, 120, 10)
    ]
    lines += [{"at_s": 30, "kind": "slow", "node": 1, "factor": 3, "for_s": 60}]
    (path / "devices.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    rng = np.random.default_rng(1)
    trace = make_trace(
        name="pairs",
        prompt_tokens=rng.integers(10, 500, ROWS),
        output_tokens=rng.integers(10, 900, ROWS),
        arrival_ps=np.arange(ROWS) // 2 * 10**12,
    )
    job = {
        "trace": str(path / "trace.jsonl"),
        "model": "qwen3-8b",
        "gpu": "h100",
        "gpus": 4,
        "gpus_per_node": 2,
        "arrivals": "trace",
        "faults": str(path / "devices.jsonl"),
        "log": "full",
    }
    return SimJob(**(job | given)), trace


def test_the_queue_of_events_is_as_long_as_what_goes_on(tmp_path: Path) -> None:
    job, trace = input_of(tmp_path)
    assert len(set_up(job, trace).simulation.env._queue) == 2


@pytest.mark.parametrize("policy", ["vllm", "batchgen"])
def test_all_at_once_gives_the_same_decisions(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, trace = input_of(tmp_path, policy=policy)
    chained = simulate(job, trace=trace)

    def ahead(simulation: Simulation, arrival_ps: np.ndarray[Any, Any]) -> None:
        for at_ps in sorted(set(arrival_ps.tolist())):
            simulation.arrive(np.flatnonzero(arrival_ps == at_ps).tolist(), at_ps)
        simulation.close_input(int(arrival_ps.max()))

    def faults_ahead(simulation: Simulation, faults: Any, gpus: int) -> None:
        for fault in faults:
            simulation.add_fault(fault, gpus)

    monkeypatch.setattr(setup, "schedule_arrivals", ahead)
    monkeypatch.setattr(
        "batchgen.sim.setup.Simulation.add_faults",
        lambda self, faults, gpus: (
            add(self, faults, gpus) if len(faults) == 1 else faults_ahead(self, faults, gpus)
        ),
    )
    at_once = simulate(job, trace=trace)
    assert b"".join(chained.decisions or ()) == b"".join(at_once.decisions or ())
    assert chained.config["events"] == at_once.config["events"]


add = Simulation.add_faults


def test_the_tail_knows_the_troubles_of_whole_nodes(tmp_path: Path) -> None:
    """They were read a second time, without the size of a node."""
    job, trace = input_of(tmp_path, arrivals="batch", log="off")
    path = tmp_path / "devices.jsonl"
    path.write_text('{"at_s": 1, "kind": "slow", "node": 1, "factor": 30, "for_s": 600}\n')
    of_nodes = simulate(job, trace=trace)
    lines = [{"at_s": 1, "kind": "slow", "gpu": gpu, "factor": 30, "for_s": 600} for gpu in (2, 3)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    of_gpus = simulate(job, trace=trace)
    assert of_nodes.config["tail_causes_s"] == of_gpus.config["tail_causes_s"]
    assert of_gpus.config["tail_causes_s"]["slow_devices"] > 0
