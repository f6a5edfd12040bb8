"""Kendall's tau-b: against all pairs, and what it must be by its meaning."""

from __future__ import annotations

from itertools import combinations
from math import isclose, sqrt

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batchgen.report.ranks import inversions, kendall_tau_b

FEW = st.integers(min_value=1, max_value=6)  # many ties
WIDE = st.integers(min_value=-(2**40), max_value=2**40)
POINTS = st.lists(st.tuples(FEW, FEW) | st.tuples(WIDE, WIDE), min_size=0, max_size=40)


def of_all_pairs(points: list[tuple[int, int]]) -> float | None:
    """The definition, pair by pair."""
    balance = told_one = told_other = 0
    for (a, b), (c, d) in combinations(points, 2):
        one, other = (a > c) - (a < c), (b > d) - (b < d)
        balance += one * other
        told_one += one != 0
        told_other += other != 0
    return balance / sqrt(told_one * told_other) if told_one and told_other else None


def columns(points: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    both = np.array(points, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


@given(POINTS)
def test_tau_is_that_of_all_pairs(points: list[tuple[int, int]]) -> None:
    one, other = columns(points)
    found, wanted = kendall_tau_b(one, other), of_all_pairs(points)
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert isclose(found, wanted, rel_tol=1e-12, abs_tol=1e-15)
        assert kendall_tau_b(other, one) == found
        assert kendall_tau_b(one, -other) == -found


@given(st.lists(WIDE, min_size=2, max_size=40))
def test_order_alone_counts(values: list[int]) -> None:
    """Any increasing function gives 1, exactly, with ties too; a falling one -1."""
    one = np.array(values, dtype=np.int64)
    if len(set(values)) == 1:
        assert kendall_tau_b(one, one) is None
    else:
        assert kendall_tau_b(one, np.cbrt(one)) == 1
        assert kendall_tau_b(one, -3 * one) == -1


@given(st.lists(st.integers(min_value=0, max_value=300), max_size=60))
def test_inversions_are_counted(values: list[int]) -> None:
    wanted = sum(a > b for a, b in combinations(values, 2))
    assert inversions(np.array(values, dtype=np.int64)) == wanted


def test_a_large_list_is_counted_as_known() -> None:
    """100,000 rows, of which the two halves have changed places: half a square of inversions."""
    half = 50_000
    values = np.r_[np.arange(half, 2 * half), np.arange(half)]
    assert inversions(values) == half * half
    pairs = half * (2 * half - 1)
    assert kendall_tau_b(np.arange(2 * half), values) == (pairs - 2 * half * half) / pairs
