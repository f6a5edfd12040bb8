"""Times that no schedule beats on a layout, from the cost model alone. It simulates nothing.

Assumed of a cost model (`CostModel`), and true of the roofline: a pass takes the longest of its
ranks, and then what the tokens of all ranks together take; time never falls with more tokens; the
own layers of a rank are convex in its tokens; contexts and pairs add at rates that are least in
full batches; one pass over a prompt takes no longer than several. So a pass takes at least

    H(tokens) + slope * context + pair * pairs

H being the time of its tokens spread evenly without attention. Measured kernels are convex within
their errors only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.cost.api import PS_PER_S, CostModel, FloatArray, IntArray, PassLoad, RankLoad

STEP = 1.08  # edges of the classes of passes; a class has the time of its first
ROUNDS = 40  # of thirds, when a price is sought
ROUNDING = 1e-9  # times of passes are rounded to picoseconds
NEAR = 10**6  # the same where a pass is no sum
PROBE = 10**9  # pairs and context tokens from which rates are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows that ended well; arrays of one entry per row.

    `prompt_tokens` have to be known to the KV; `decodes` are tokens that no prompt pass makes: all
    but the first of each stage; `context` is what the first of them reads at least, less one.
    `arrival_ps` counts from the first arrival. `fresh_tokens` None: every prompt is computed by its
    row. Else rows share prefixes: a row computes at least that many itself, and all together at
    least `least_prompt_tokens`.
    """

    prompt_tokens: NDArray[np.int64]
    decodes: NDArray[np.int64]
    context: NDArray[np.int64]
    arrival_ps: NDArray[np.int64]
    fresh_tokens: NDArray[np.int64] | None = None
    least_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Lower bounds of the batch completion time, in seconds."""

    longest_row_s: float
    work_s: float


class Floor:
    """The least that passes take on one engine in one layout. `kv_tokens`, `seats` (rows that
    decode) and `token_budget` are per rank. Times in ps."""

    def __init__(self, cost: CostModel, *, kv_tokens: int, seats: int, token_budget: int) -> None:
        ranks = cost.num_ranks
        seats = min(seats, token_budget)
        self.ranks, self.token_budget = ranks, token_budget
        self.kv_tokens, self.seats = kv_tokens * ranks, seats * ranks
        # Classes of passes by tokens of the engine: the least and the most tokens, the least time.
        edges = np.array(_edges(ranks * token_budget))
        self.most = edges[1:] - 1.0
        self.time = _rising(self._tokens_ps(cost, edges[:-1]))
        # One row alone: a decode pass without attention, and prompt passes.
        self.decode_ps = _one_rank(cost, (1, 0, 0, 0, 0, 1, 0))
        self.chunks = np.array(_edges(token_budget))
        sizes = [_one_rank(cost, _prompt(size)) for size in self.chunks[:-1].tolist()]
        self.chunk_ps = _rising(np.array(sizes))
        self.whole_chunk_ps = float(_one_rank(cost, _prompt(token_budget)))
        # Rates per context token and per pair on one rank. Passes that are no sums (a host link
        # hides what is shorter) have the least rate at the begin.
        at = (1, NEAR) if cost.detailed else (PROBE,)
        self.slope = min(
            (cost.pass_one_ps(rows, read) - cost.pass_one_ps(rows, 0)) / read
            for rows in _edges(seats)[:-1]
            for read in at
        )
        self.pair = self._pair_ps(cost)

    def _pair_ps(self, cost: CostModel) -> float:
        """The least rate per pair of prompts of any size. What crosses a host link grows with the
        tokens of a prompt, and may hide the pairs of a long one while it hides none of a short."""
        far = NEAR if cost.detailed else PROBE
        once, twice = (cost.pass_one_ps(0, 0, 1, pairs) for pairs in (far, 2 * far))
        least = (twice - once) / far
        if not cost.detailed:
            return least
        sizes = np.append(self.chunks[:-1], self.token_budget) if cost.streams else np.ones(1)
        pairs = np.array([0, 1, NEAR])
        load = PassLoad.zeros(cost.num_ranks, len(sizes) * len(pairs))
        load.chunk_tokens[:] = np.repeat(sizes, len(pairs))
        load.chunk_pairs[:] = np.tile(pairs, len(sizes))
        times = cost.pass_ps(load).reshape(len(sizes), len(pairs))
        more = (times[:, 1:] - times[:, :1]) / pairs[1:]
        return min(least, float(more.min()))

    def _tokens_ps(self, cost: CostModel, tokens: IntArray) -> IntArray:
        """The least times of passes of so many tokens: only decodes, only prompts, or more than all
        seats decode, so that the rest are prompts."""
        decodes = _spread("decodes", cost, np.minimum(tokens, self.seats))
        fits = tokens <= self.seats
        prompts = _spread("chunk_tokens", cost, np.where(fits, tokens, tokens - self.seats))
        alone = _spread("chunk_tokens", cost, tokens)  # may pay no exchange between nodes
        both = np.where(fits, prompts, np.maximum(decodes, prompts))
        return np.minimum(np.minimum(both, alone), np.where(fits, decodes, alone))

    def prompt_ps(self, tokens: NDArray[np.int64]) -> FloatArray:
        """The fewest passes over a prompt alone, without attention."""
        whole, rest = np.divmod(tokens, self.token_budget)
        at = np.searchsorted(self.chunks, rest, side="right") - 1
        part = np.where(rest > 0, self.chunk_ps[np.clip(at, 0, len(self.chunk_ps) - 1)], 0.0)
        return np.asarray(whole * self.whole_chunk_ps + part)


def bounds(floors: Sequence[Floor], num_engines: int, rows: Rows) -> Bounds:
    """Both bounds for engines that can be in any of the layouts of `floors`, the first being the
    one they are made for."""
    if not len(rows.prompt_tokens):
        return Bounds(longest_row_s=0.0, work_s=0.0)
    keep = (1.0 - ROUNDING) / PS_PER_S
    return Bounds(
        longest_row_s=_longest_row_ps(floors, rows) * keep,
        work_s=_work_ps(floors, rows) / num_engines * keep,
    )


def _longest_row_ps(floors: Sequence[Floor], rows: Rows) -> float:
    """The largest over rows of its arrival, the fewest passes over its prompt, and one decode pass
    alone per further token, its context read at the best rate of any batch.

    Whoever recomputes a row has a token by a prompt pass instead: contexts so short that this could
    be cheaper are read for nothing.
    """
    decode = min(floor.decode_ps for floor in floors)
    slope, pair = min(f.slope for f in floors), min(f.pair for f in floors)
    prompts = rows.prompt_tokens if rows.fresh_tokens is None else rows.fresh_tokens
    time = rows.arrival_ps + np.minimum.reduce([floor.prompt_ps(prompts) for floor in floors])
    time = time + rows.decodes * float(decode)
    if rows.fresh_tokens is None:
        time = time + pair * prompts.astype(np.float64) ** 2
        cheap = 0.0
        for floor in floors:
            first, after = floor.chunks[:-1].astype(np.float64), floor.chunks[1:]
            less = floor.chunk_ps + pair * first**2 < decode + slope * after
            cheap = max(cheap, float(after[less].max(initial=0)))
        _, read = _reads(rows, cheap)
        time = time + slope * read
    return float(time.max())


def _work_ps(floors: Sequence[Floor], rows: Rows) -> float:
    """Engine time of all rows at the best prices: the dual of a covering problem.

    Every pass of every layout takes at least mu per token, eps per decode up to the seats and
    G per context token up to the KV pool (a row's share being at most the longest context), and pi
    per pair. So all passes together take at least these prices of what the rows need; the prices
    are chosen to make that large. A token by recomputation costs mu n + pi n^2 instead of
    mu + eps + G n: contexts n so short that this could be less are charged mu only.
    """
    decodes = float(rows.decodes.sum())
    if rows.fresh_tokens is not None:  # shared pages hold more context than fits, for no work
        mu = _per_token(floors, 0.0, 0.0, 0.0)
        return mu * (rows.least_prompt_tokens + decodes)
    prompts = rows.prompt_tokens.astype(np.float64)
    pair = min(floor.pair / floor.ranks for floor in floors)
    fixed = pair * float((prompts**2).sum())
    context = float(_reads(rows, 0.0)[1].sum())
    longest = float((rows.context + rows.decodes).max())
    read = floors[0].slope / floors[0].ranks
    tokens = float(prompts.sum()) + decodes

    def value(eps: float, over: float) -> float:
        """The objective without recomputation."""
        mu = _per_token(floors, eps, read + over, longest)
        return mu * tokens + eps * decodes + (read + over) * context if mu >= 0 else -1.0

    def charged(eps: float, gain: float) -> float:
        """The bound at these prices."""
        mu = _per_token(floors, eps, gain, longest)
        if mu < 0:
            return 0.0
        count, summed = _reads(rows, _worth_decoding(mu, eps, gain, pair))
        return fixed + mu * tokens + eps * float(count.sum()) + gain * float(summed.sum())

    top = max(float(f.time[-1]) for f in floors)
    over = _maximum(lambda x: value(0.0, x), top / floors[0].kv_tokens)
    eps = _maximum(lambda x: value(x, 0.0), top / floors[0].seats)
    both = _maximum(lambda x: value(x, over), top / floors[0].seats)
    chances = [(0.0, 0.0), (0.0, read), (0.0, read + over), (eps, read), (both, read + over)]
    return max(charged(*prices) for prices in chances)


def _per_token(floors: Sequence[Floor], eps: float, gain: float, longest: float) -> float:
    """The largest price of a token that no pass undercuts, in ps; negative: there is none."""
    found = np.inf
    for floor in floors:
        over = max(0.0, gain - floor.slope / floor.ranks)
        paid = eps * np.minimum(floor.seats, floor.most)
        paid = paid + over * np.minimum(floor.kv_tokens, floor.most * longest)
        found = min(found, float(((floor.time - paid) / floor.most).min()))
    return found


def _worth_decoding(mu: float, eps: float, gain: float, pair: float) -> float:
    """Contexts from which on recomputing a token costs no less than decoding it."""
    linear, constant = mu - gain, mu + eps
    if pair > 0:
        return float((-linear + np.sqrt(linear**2 + 4 * pair * constant)) / (2 * pair))
    return constant / linear if linear > 0 else np.inf


def _reads(rows: Rows, least: float) -> tuple[FloatArray, FloatArray]:
    """Per row: decodes that read contexts of at least `least`, and the sum of these contexts."""
    last = (rows.context + rows.decodes).astype(np.float64)
    first = np.maximum(rows.context + 1.0, np.ceil(least))
    count = np.maximum(last - first + 1.0, 0.0)
    return count, np.where(count > 0, count, 0.0) * (np.minimum(first, last) + last) / 2


def _maximum(function: Callable[[float], float], top: float) -> float:
    """Where a concave function is largest in [0, top]; beyond a point it may be flat and low."""
    low = 0.0
    for _ in range(ROUNDS):
        third = (top - low) / 3
        if function(low + third) >= function(top - third):
            top -= third
        else:
            low += third
    return low


def _rising(times: IntArray) -> FloatArray:
    """Each the least of itself and all behind it."""
    return np.minimum.accumulate(times[::-1]).astype(np.float64)[::-1]


def _edges(most: int) -> list[int]:
    """1, 2, 3, ... by `STEP` up to `most`, and one beyond it."""
    edges = [1]
    while edges[-1] <= most:
        edges.append(min(max(edges[-1] + 1, int(STEP * edges[-1])), most + 1))
    return edges


def _spread(kind: str, cost: CostModel, tokens: IntArray) -> IntArray:
    """Times of passes of so many tokens of one kind, spread evenly over the ranks."""
    load = PassLoad.zeros(cost.num_ranks, len(tokens))
    rank = np.arange(cost.num_ranks)[:, None]
    getattr(load, kind)[:] = tokens // cost.num_ranks + (rank < tokens % cost.num_ranks)
    return cost.pass_ps(load)


def _prompt(tokens: int) -> RankLoad:
    return (0, 0, tokens, 0, 0, 0, 0)


def _one_rank(cost: CostModel, load: RankLoad) -> int:
    """A pass of one rank, the others idle."""
    return cost.time_ps([load] + [(0, 0, 0, 0, 0, 0, 0)] * (cost.num_ranks - 1))
