"""How well one list of numbers orders another: Kendall's tau-b. It knows nothing of runs."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kendall_tau_b(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Kendall's tau-b of two arrays of shape (n,), from -1 to 1, in O(n log n).

    Pairs that both put the same way round, less those they put opposite ways round, over the
    geometric mean of the pairs that each of them can tell apart: so ties of one alone cost, and
    equal orders have 1 with ties too. None: one of them tells no pair apart.
    """
    first = np.unique(one, return_inverse=True)[1].astype(np.int64)
    second = np.unique(other, return_inverse=True)[1].astype(np.int64)
    n = len(first)
    pairs = n * (n - 1) // 2
    tied_one, tied_other = _pairs_alike(first), _pairs_alike(second)
    if pairs in (tied_one, tied_other):
        return None
    tied_both = _pairs_alike(first * (int(second.max()) + 1) + second)
    # With ties of `one` in the order of `other`, no pair counts that `one` does not tell apart.
    opposite = inversions(second[np.lexsort((second, first))])
    same_less_opposite = pairs - tied_one - tied_other + tied_both - 2 * opposite
    return same_less_opposite / sqrt((pairs - tied_one) * (pairs - tied_other))


def _pairs_alike(values: NDArray[np.int64]) -> int:
    counts = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def inversions(values: NDArray[np.int64]) -> int:
    """Pairs in which the earlier value is strictly larger; values: shape (n,), 0 or more.

    Bit by bit from the highest: rows that are alike in all higher bits form a group, in their
    order; a pair of a group counts where 1 comes before 0. Then each group is split in two.
    """
    order, count = values, 0
    place = np.arange(len(values), dtype=np.int64)
    for bit in reversed(range(int(values.max(initial=0)).bit_length())):
        group, one = order >> (bit + 1), (order >> bit) & 1
        begins = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        sizes = np.diff(np.r_[begins, len(order)])
        start = np.repeat(begins, sizes)
        ones_before = np.cumsum(one) - one
        ones_before -= ones_before[start]
        count += int(ones_before[one == 0].sum())
        zeros = np.repeat(np.add.reduceat(1 - one, begins), sizes)
        to = np.where(one == 1, start + zeros + ones_before, place - ones_before)
        split = np.empty_like(order)
        split[to] = order
        order = split
    return count
