"""A log of steps only holds what the full log says of steps, word for word."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchgen.logbook import BLOCK_STEPS, DecisionLog
from batchgen.sim.setup import set_up
from batchgen.simjob import SimJob
from batchgen.trace.generate import lognormal


def entries_of(preset: str, log: str) -> list[dict[str, Any]]:
    """The parsed lines without the header. Rows are many, so that steps are packed while it runs
    and their rows change after they were told."""
    trace = lognormal(200, 0.8, 100, 1.0, 6000, seed=1)
    job = SimJob(
        trace="",
        model="llama-3.1-8b",
        gpu="h100-sxm",
        gpus=4,
        layout="dp4",
        policy=preset,
        overrides=(("plan.max_num_seqs", "32"), ("plan.boundary", "32")),
        log=log,
    )
    simulation = set_up(job, trace).simulation
    simulation.run()
    assert isinstance(simulation.observer, DecisionLog)
    lines = list(simulation.observer.lines())
    assert len(lines) == len(simulation.observer) + 1
    return [json.loads(line) for line in lines[1:]]


@pytest.mark.parametrize("preset", ["vllm", "batchgen"])
def test_steps_of_the_full_log(preset: str) -> None:
    steps = entries_of(preset, "steps")
    assert len(steps) > 2 * BLOCK_STEPS
    expected = []
    for entry in entries_of(preset, "full"):
        del entry["digest"]
        entry["actions"] = [action for action in entry["actions"] if action["type"] == "step"]
        if entry["actions"] or entry["event"]["type"] == "landed":
            expected.append(entry)
    assert steps == expected
