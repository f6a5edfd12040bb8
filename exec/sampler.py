"""From logits to the next token: greedy, or a seeded draw from the best tokens. Keeps no state.

The vocabulary is never sorted: the few tokens that a draw can come to are those of the best blocks.
Only a draw that needs the probability of the whole vocabulary reads the logits a second time.

The randomness of a row is a hash of its seed and of how many tokens it has produced, so that no
batch, order or restart can change a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from batchgen.exec.blocks import BLOCK_TOKENS, Blocks, Floats, Ints, best_tokens, block_masses

TIERS = (64, 512)  # how many blocks are looked at first, and after that; then whole rows
SMALL_BLOCKS = 8  # so few are sorted at once
# Of a flat distribution, tokens are put in bins by how far they lie behind the best, in units of
# the temperature; e^-64 of 4 million tokens is nothing in float64.
BINS_PER_UNIT, LAST_BIN = 64.0, 64 * 64
GROUP_ROWS = 32  # rows whose candidates are in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """How rows draw, as columns [S]; `top_k` 0 is all."""

    temperature: Floats
    top_p: Floats
    min_p: Floats
    top_k: Ints
    seeds: npt.NDArray[np.uint64]
    counters: Ints

    def __getitem__(self, rows: Ints) -> Draws:
        return Draws(
            temperature=self.temperature[rows],
            top_p=self.top_p[rows],
            min_p=self.min_p[rows],
            top_k=self.top_k[rows],
            seeds=self.seeds[rows],
            counters=self.counters[rows],
        )


def uniform(
    seeds: npt.NDArray[np.uint64] | Sequence[int], counters: Ints | Sequence[int]
) -> Floats:
    """One number in [0, 1) per (seed, counter): two rounds of the splitmix64 finaliser.

    Source of the constants: Steele, Lea and Flood, Fast splittable pseudorandom number generators,
    OOPSLA 2014, in the variant of Vigna's splitmix64.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(seeds, dtype=np.uint64))
        state = _mix(state ^ np.asarray(counters, dtype=np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def choose(blocks: Blocks, drawing: Ints, draws: Draws) -> Ints:
    """Next token of each row; `drawing` are the rows that draw, and `draws` how. The vocabulary
    size marks a row whose logits are not finite."""
    chosen: Ints = blocks.greedy().cpu().numpy().copy()
    fine = np.flatnonzero(chosen[drawing] < blocks.vocab_size)
    if len(fine):
        rows = drawing[fine]
        chosen[rows] = draw(blocks, rows, draws[fine])
    return chosen


def draw(blocks: Blocks, rows: Ints, draws: Draws) -> Ints:
    """One token for each of `rows` [S], ascending, of the blocks: rows whose logits have a finite
    maximum, and with temperatures of at least LEAST_TEMPERATURE."""
    if blocks.logits.device.type != "cpu":
        blocks, rows = blocks.take(torch.from_numpy(rows)), np.arange(len(rows))
    width = int(blocks.logits.shape[1]) * BLOCK_TOKENS
    draws_k = np.where(draws.top_k == 0, width, draws.top_k)
    cut = draws_k < blocks.vocab_size
    limited = cut | (draws.top_p < 1.0) | (draws.min_p > 0.0)
    weighed = np.flatnonzero(~limited | ((draws.top_p < 1.0) & ~cut))
    masses = np.zeros((len(rows), blocks.tops.shape[1]))
    masses[weighed] = block_masses(blocks, rows[weighed], draws.temperature[weighed])
    tokens = np.zeros(len(rows), dtype=np.int64)
    at_random = uniform(draws.seeds, draws.counters)
    logits, tops = blocks.logits.numpy(), blocks.tops.numpy()
    free = np.flatnonzero(~limited)
    if len(free):
        tokens[free] = _from_all(
            logits, tops, rows[free], masses[free], draws.temperature[free], at_random[free]
        )
    left = np.flatnonzero(limited)
    for tier in tiers_of(tops.shape[1]):
        again = []
        for start in range(0, len(left), GROUP_ROWS):
            some = left[start : start + GROUP_ROWS]
            found, held = _from_best(
                logits,
                tops,
                rows[some],
                draws[some],
                masses[some].sum(axis=1),
                at_random[some],
                tier,
            )
            tokens[some[held]] = found[held]
            again.append(some[~held])
        left = np.concatenate(again) if again else left
    for row in left.tolist():
        tokens[row] = _from_row(logits[rows[row]].ravel(), draws[np.array([row])], at_random[row])
    return tokens


def tiers_of(num_blocks: int) -> Sequence[int]:
    """How many blocks to look at, one number after the other, before whole rows are."""
    if num_blocks <= SMALL_BLOCKS:
        return (num_blocks,)
    return [tier for tier in TIERS if 2 * tier <= num_blocks] or (num_blocks // 2,)


def _from_all(
    logits: npt.NDArray[np.float32],
    tops: npt.NDArray[np.float32],
    rows: Ints,
    masses: Floats,
    temperature: Floats,
    at_random: Floats,
) -> Ints:
    """Draws from the whole vocabulary: first a block by its mass, then a token of it."""
    below = masses.cumsum(axis=1)
    wanted = at_random * below[:, -1]
    each = np.arange(len(rows))
    block = np.minimum((below <= wanted[:, None]).sum(axis=1), _last(masses))
    inside = logits[rows, block].astype(np.float64)
    best = tops[rows].max(axis=1).astype(np.float64)
    weights = np.exp((inside - best[:, None]) / temperature[:, None])
    # What of the block lies below the number, as a share of it: sums of two kinds differ a little.
    share = (wanted - (below[each, block] - masses[each, block])) / masses[each, block]
    sums = weights.cumsum(axis=1)
    token = (sums <= (np.clip(share, 0.0, 1.0) * sums[:, -1])[:, None]).sum(axis=1)
    return block * BLOCK_TOKENS + np.minimum(token, _last(weights))


def _from_best(
    logits: npt.NDArray[np.float32],
    tops: npt.NDArray[np.float32],
    rows: Ints,
    draws: Draws,
    mass: Floats,
    at_random: Floats,
    num_blocks: int,
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Draws from the best tokens of each row [P], and whether those that were looked at were enough
    (if not, the draw means nothing).

    Looked at are all tokens that are no worse than the best of the `num_blocks`-th best block: at
    least so many. `mass`: of the whole vocabulary, for rows whose top_p is a share of that.
    """
    ids, values = best_tokens(logits, tops, rows, num_blocks)
    whole = num_blocks >= tops.shape[1]
    temperature = draws.temperature[:, None]
    weights = np.exp((values - values[:, :1]) / temperature)
    found = np.isfinite(values)
    counts = found.sum(axis=1)
    k = np.where(draws.top_k == 0, np.iinfo(np.int64).max, draws.top_k)
    kept = np.where(np.arange(weights.shape[1]) < k[:, None], weights, 0.0)
    sums = kept.cumsum(axis=1)
    cut = (draws.top_k > 0) & (draws.top_k < logits.shape[1] * BLOCK_TOKENS)
    has_k = counts >= k
    limit = draws.top_p * np.where(mass > 0, mass, sums[:, -1])
    by_p = draws.top_p < 1.0
    # A token counts if those before it have less than top_p.
    kept = np.where(by_p[:, None] & (sums - kept >= limit[:, None]), 0.0, kept)
    kept[:, 0] = weights[:, 0]  # one is always left, even if top_p is subnormal
    least = np.take_along_axis(weights, np.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
    by_min = (draws.min_p > 0) & (least < draws.min_p)
    kept = np.where(weights < draws.min_p[:, None], 0.0, kept)
    held = has_k | (~cut & by_p & (sums[:, -1] >= limit)) | (by_min & ~(cut & by_p))
    sums = kept.cumsum(axis=1)
    place = (sums <= (at_random * sums[:, -1])[:, None]).sum(axis=1)
    place = np.minimum(place, _last(kept))
    return ids[np.arange(len(rows)), place], held | whole


def _from_row(logits: npt.NDArray[np.float32], draws: Draws, at_random: float) -> int:
    """One draw from all tokens of one row: a flat distribution, of which a draw can come to many.

    Nothing is sorted but the tokens around the last that top_p lets in.
    """
    values = logits.astype(np.float64)
    behind = (values.max() - values) / draws.temperature[0]
    kept = np.exp(-behind)
    top_k, top_p, min_p = int(draws.top_k[0]), float(draws.top_p[0]), float(draws.min_p[0])
    weights = kept
    if 0 < top_k < len(kept):
        kth = np.partition(behind, top_k - 1)[top_k - 1]
        tied = np.flatnonzero(behind == kth)
        kept = np.where(behind <= kth, kept, 0.0)
        kept[tied[top_k - int((behind < kth).sum()) :]] = 0.0
    if top_p < 1.0:
        bins = np.minimum(behind * BINS_PER_UNIT, LAST_BIN).astype(np.int64)
        sums = np.bincount(bins, weights=kept, minlength=LAST_BIN + 1).cumsum()
        limit = top_p * sums[-1]
        cut = int(np.searchsorted(sums, limit))
        around = np.flatnonzero(bins == cut)
        around = around[np.argsort(behind[around], kind="stable")]
        before = sums[cut] - kept[around].sum() + kept[around].cumsum() - kept[around]
        kept = np.where(bins > cut, 0.0, kept)
        kept[around[before >= limit]] = 0.0
    if min_p > 0.0:
        kept = np.where(weights < min_p, 0.0, kept)
    best = int(behind.argmin())
    kept[best] = weights[best]  # one is always left
    below = kept.cumsum()
    token = int(np.searchsorted(below, at_random * below[-1], side="right"))
    return min(token, int(np.flatnonzero(kept)[-1]))


def _last(weights: Floats) -> Ints:
    """The last place of each row that has any weight."""
    return weights.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
