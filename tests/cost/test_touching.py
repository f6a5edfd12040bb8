"""Experts that a pass wakes: against draws, and against the uniform formula."""

from __future__ import annotations

import tracemalloc

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


@pytest.mark.parametrize(("num_experts", "top_k"), [(256, 8), (60, 4), (8, 2), (1, 1)])
@pytest.mark.parametrize("skew", [0.3, 1.01, 3.0, 10.0])
def test_what_need_not_be_computed_is_the_same_to_the_bit(
    num_experts: int, top_k: int, skew: float
) -> None:
    rng = np.random.default_rng(0)
    none_of_it = 1.0 - popularity(num_experts, top_k, skew)
    for tokens in (
        np.arange(0.0, 2500.0),
        np.sort(rng.integers(0, 300_000, 1500)).astype(np.float64),
        rng.random((3, 40)) * 9000.0,
        np.zeros(0),
    ):
        plain = (1.0 - np.power(none_of_it, tokens[..., None])).sum(-1)
        assert np.array_equal(touched_experts(tokens, num_experts, top_k, skew), plain)


def test_a_table_of_many_numbers_of_tokens_is_made_in_pieces() -> None:
    """512 MiB and 10 s, were it made at once and in full."""
    tokens = np.arange(262_144.0, 524_288.0)
    tracemalloc.start()
    try:
        found = touched_experts(tokens, 256, 8, 1.01)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found == 256).all()
    assert peak < 64 << 20
