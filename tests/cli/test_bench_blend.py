"""`batchgen bench blend` on a small mix: direction of the speed-up, its table, its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.catalog.blend import (
    BLEND,
    DEPTH_FIRST,
    OVERLAPPED,
    SYSTEMS,
    Outcome,
    missed,
    rates,
)
from batchgen.cli.bench_blend import measure


def test_a_small_mix(tmp_path: Path) -> None:
    one = measure(1.4, 0.35, rates(), 1500, 4096, 0, [*SYSTEMS, *OVERLAPPED])
    assert set(one.seconds) == {*SYSTEMS, *OVERLAPPED}
    assert one.failed == dict.fromkeys(one.seconds, 0)
    for label in OVERLAPPED:  # overlap alone is worth something, and BlendServe's order the rest
        assert one.seconds[label] < one.seconds[label.partition(",")[0]]
    assert one.order_speedup == min(map(one.seconds.get, OVERLAPPED)) / one.seconds[BLEND]
    assert one.optimum_s < one.practical_s < min(one.seconds.values())
    assert one.seconds[BLEND] < min(one.seconds["vllm"], one.seconds["sglang"])
    assert one.shared[DEPTH_FIRST] == pytest.approx(one.possible, abs=0.02)


def outcome(**changes: float) -> Outcome:
    seconds = {"vllm": 140.0, "sglang": 150.0, DEPTH_FIRST: 139.0, BLEND: 100.0}
    shared = dict.fromkeys(SYSTEMS, 0.35)
    for key, value in changes.items():
        seconds["blendserve" if key == "blend" else "depth-first"] = value
    return Outcome(
        density=1.4,
        sharing=0.35,
        optimum_s=100.0,
        practical_s=125.0,
        possible=0.35,
        seconds=seconds,
        shared=shared,
        failed=dict.fromkeys(SYSTEMS, 0),
    )


def test_bars() -> None:
    assert missed([outcome()]) == []
    assert outcome().order_speedup is None
    assert "blendserve 1.08 x" in missed([outcome(blend=130.0)])[0]
    assert "0.500 of the optimum" in missed([outcome(depth=200.0)])[0]
    assert json.dumps(missed([outcome()])) == "[]"
