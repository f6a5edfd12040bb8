"""Expert load: how many experts a batch touches and how heavy the fullest rank is. No times."""

from __future__ import annotations

from functools import cache

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.expert_placement import rank_loads

_BLOCK = 1024  # numbers of tokens at once: a table of them has hundreds of thousands
_NOTHING = 2.0**-60  # less than this leaves 1.0 as it is


def touched_experts(
    tokens: FloatArray,
    num_experts: FloatArray | int,
    top_k: FloatArray | int,
    skew: float = 0.0,
) -> FloatArray:
    """Expected number of distinct experts under independent routing, uniform or with a `popularity`
    of that skew (then for one model).

    The sum over experts of 1 - (1 - p)^tokens, which is E (1 - (1 - k/E)^tokens) without skew; an
    upper bound, since real routing is correlated.
    """
    if skew == 0.0:
        return num_experts * (1.0 - np.power(1.0 - top_k / num_experts, tokens))
    chance = popularity(int(num_experts), int(top_k), skew)  # type: ignore[arg-type]
    # Passes of one step mostly have as many tokens as each other.
    different, place = np.unique(tokens, return_inverse=True)
    distinct = np.full(len(different), float(len(chance)))
    for begin in range(0, len(different), _BLOCK):
        some = different[begin : begin + _BLOCK]
        # The popular come first, and those that all of the block touch need no power.
        surely = int((np.power(1.0 - chance, some[0]) < _NOTHING).sum())
        if surely < len(chance):
            terms = np.ones((len(some), len(chance)))
            terms[:, surely:] -= np.power(1.0 - chance[None, surely:], some[:, None])
            distinct[begin : begin + _BLOCK] = terms.sum(1)
    found: FloatArray = distinct[place].reshape(np.shape(tokens))
    return found


def popularity(num_experts: int, top_k: int, skew: float) -> FloatArray:
    """Chance of each expert to be chosen for a token (sums to top_k), most popular first.

    Proportional to rank^-skew, none above 1: a token uses an expert once, so what a popular
    expert cannot take goes to the others.
    """
    weight = np.arange(1, num_experts + 1, dtype=np.float64) ** -skew
    chance = np.zeros(num_experts)
    full = 0
    while True:
        rest = weight[full:]
        chance[full:] = (top_k - full) * rest / rest.sum()
        over = full + int((chance[full:] > 1.0).sum())
        if over == full:
            return chance
        chance[:over] = 1.0
        full = over


@cache
def heaviest_rank(
    num_experts: int, top_k: int, ep: int, skew: float, spare: int | None = None
) -> float:
    """Load of the fullest of `ep` ranks over the mean (1 without skew).

    Without `spare` experts lie on the ranks in a fixed random order (seed 0), as in a checkpoint
    whose expert numbers say nothing about popularity. With it they are placed by their loads, with
    so many copies beside (`cost.expert_placement`); then all ranks have as many slots.
    """
    if spare is not None:
        chance = popularity(num_experts, top_k, max(skew, 0.0))
        return max(rank_loads(chance.tolist(), ep, spare)) * ep / top_k
    if ep <= 1 or skew <= 0.0:
        # Only the uneven split of the experts remains.
        return -(-num_experts // ep) * ep / num_experts
    order = np.random.default_rng(0).permutation(num_experts)
    chance = popularity(num_experts, top_k, skew)[order]
    loads = [float(part.sum()) for part in np.array_split(chance, ep)]
    return max(loads) * ep / top_k
