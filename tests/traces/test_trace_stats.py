"""Statistics against values counted by hand, and pictures that really draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.trace import TraceBuilder, make_trace
from batchgen.trace.plot import plot
from batchgen.trace.stats import describe


def test_describe_by_hand() -> None:
    trace = make_trace(
        name="x",
        prompt_tokens=[10, 20, 30, 40],
        output_tokens=[1, 1, 1, 97],
        arrival_ps=np.array([0, 3, 1, 2]) * 10**12,
        group=np.array([0, 0, 0, -1]),
    )
    stats = describe(trace)
    assert stats["rows"] == 4
    assert stats["prompt_tokens"]["mean"] == 25
    assert stats["prompt_tokens"]["p50"] == 25
    assert stats["output_tokens"]["max"] == 97
    assert stats["total_tokens"] == 200
    assert stats["arrivals"] == {"span_s": 3.0, "rate_per_s": 1.0, "gap_cv": 0.0, "sorted": False}
    assert stats["groups"] == {"count": 1, "smallest": 3, "mean": 3.0, "largest": 3}
    assert "prefix" not in stats


@given(rows=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=12))
def test_hit_ratio_equals_a_walk_through_a_trie(rows: list[list[int]]) -> None:
    builder = TraceBuilder()
    names: dict[tuple[int, ...], int] = {}
    hits = blocks = 0
    for row in rows:
        chain = []
        for depth in range(len(row)):
            leading = tuple(row[: depth + 1])
            hits += leading in names
            chain.append(names.setdefault(leading, len(names)))
        blocks += len(row)
        builder.add(5, 1, 0, chain)
    stats = describe(builder.build(name="x", prefix_block_tokens=1))
    if blocks:
        assert stats["prefix"]["hit_ratio"] == pytest.approx(hits / blocks)
        assert stats["prefix"]["distinct_blocks"] == len(names)
    else:
        assert "prefix" not in stats


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_plot(tmp_path: Path, timed: bool, ending: str) -> None:
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.integers(0, 10**14, 50)) if timed else None
    trace = make_trace(
        name="a",
        prompt_tokens=rng.integers(1, 100, 50),
        output_tokens=np.full(50, 7),
        arrival_ps=arrival,
    )
    path = tmp_path / f"p.{ending}"
    plot([trace, trace], path)
    first = path.read_bytes()
    assert len(first) > 5000
    with pytest.raises(UserError, match="exists already"):
        plot([trace], path)
    if ending == "png":
        plot([trace, trace], path, force=True)
        assert path.read_bytes() == first
    with pytest.raises(UserError, match="kind of picture"):
        plot([trace], tmp_path / "p.gif")
    with pytest.raises(UserError, match="0 traces"):
        plot([], tmp_path / "q.png")
