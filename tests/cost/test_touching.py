"""Experts that a pass wakes: against draws, and against the uniform formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.cost.experts import popularity, touched_experts


@given(
    num_experts=st.integers(2, 300),
    share=st.floats(0.01, 1),
    tokens=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    skew=st.floats(0.01, 2),
)
def test_popular_experts_leave_others_asleep(
    num_experts: int, share: float, tokens: list[int], skew: float
) -> None:
    top_k = max(1, int(share * num_experts))
    passes = np.array(tokens, dtype=np.float64)
    even = touched_experts(passes, num_experts, top_k)
    uneven = touched_experts(passes, num_experts, top_k, skew)
    assert (uneven <= even * (1 + 1e-9)).all()
    assert (uneven >= np.minimum(passes, 1) * top_k * (1 - 1e-9)).all()
    alone = [touched_experts(np.array([one]), num_experts, top_k, skew)[0] for one in passes]
    assert uneven == pytest.approx(alone)


def test_touched_experts_are_those_of_draws() -> None:
    """Every expert by itself, with its chance: what the formula assumes."""
    rng = np.random.default_rng(0)
    chance = popularity(64, 4, 1.2)
    for tokens in (1, 7, 60):
        drawn = (rng.random((4000, tokens, 64)) < chance).any(1).sum(1)
        found = touched_experts(np.array([float(tokens)]), 64, 4, 1.2)[0]
        assert found == pytest.approx(drawn.mean(), rel=0.02)
