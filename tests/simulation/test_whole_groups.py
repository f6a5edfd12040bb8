"""Placement of whole groups, by turns and by work."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.trace.table import make_trace

GROUPS, SIZE = 24, 6


def placed(path: Path, policy: str, layout: str, **overrides: str) -> np.ndarray[Any, Any]:
    """The engine of each row, one line per group; one group is far the longest."""
    file = path / "trace.jsonl"
    file.write_text('{"prompt_tokens": 5, "output_tokens": 5}\n')
    outputs = np.random.default_rng(2).integers(20, 60, GROUPS * SIZE)
    outputs[:SIZE] += 2000
    trace = make_trace(
        name="groups",
        prompt_tokens=np.full(GROUPS * SIZE, 30),
        output_tokens=outputs,
        group=np.repeat(np.arange(GROUPS), SIZE),
    )
    job = SimJob(
        trace=str(file),
        model="mixtral-8x7b",
        gpu="h100",
        gpus=16,
        layout=layout,
        policy=policy,
        oracle=policy == "batchgen",
        overrides=tuple((key.replace("_", ".", 1), value) for key, value in overrides.items()),
    )
    record = simulate(job, trace=trace, part=True)
    return np.asarray(record.rows["engine"]).reshape(GROUPS, SIZE)


@pytest.mark.parametrize("layout", ["tp2", "dpa4+ep4"])
def test_groups_in_turn(layout: str, tmp_path: Path) -> None:
    engines = placed(tmp_path, "vllm", layout, placement_whole_groups="true")
    count = 8 if layout == "tp2" else 4
    assert (engines == np.arange(GROUPS)[:, None] % count).all()
    apart = placed(tmp_path, "vllm", layout)
    assert (apart.ravel() == np.arange(GROUPS * SIZE) % count).all()


@pytest.mark.parametrize("layout", ["tp2", "dpa4+ep4"])
def test_groups_by_work(layout: str, tmp_path: Path) -> None:
    options = {"placement_whole_groups": "true", "placement_steal": "false"}
    engines = placed(tmp_path, "batchgen", layout, **options)
    assert (engines == engines[:, :1]).all()
    of_groups = Counter(engines[:, 0].tolist())
    assert of_groups[int(engines[0, 0])] == 1  # the longest group has an engine for itself
    assert len(of_groups) == (8 if layout == "tp2" else 4)
