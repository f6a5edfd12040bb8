"""How much rows may still produce, from what rows have produced so far. Pure.

Rows of longer prompts may come to longer answers, and a policy may run those first: lengths are
counted in units of a power of the prompt's, by the slope of the rows that have stopped (0 to 1).

The rate at which rows stop, per token, is constant between two edges: stops seen there over tokens
produced there, by rows that still run too (so that long rows are not forgotten). Where few rows
have been, the rate over all lengths is mixed in. A row goes on to a stop or to its budget,
whichever is first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BINS, SPAN = 64, 4096.0
PRIOR_ROWS = 2.0
"""Rows that went through each bin and stopped at the mean rate, before any real one."""
RULE_OF_THREE = 3.0
"""No stop was seen in so many tokens: with 95 % the rate is below 3 over them."""
LEAST_SHARE = 1e-9
LEAST_STOPS, LEAST_EXPLAINED = 10, 0.1
"""So many stops, and such a part of their spread, say something of the prompt's length."""


@dataclass(frozen=True, slots=True)
class Stops:
    """Rates of stops per token between `edges`; `share` and `whole` are of a row that has produced
    as many tokens as an edge says: how probable it is to come so far, and how many tokens it has
    produced up to there, on average."""

    edges: Floats
    rates: Floats
    share: Floats
    whole: Floats

    @classmethod
    def of(cls, rates: Floats, edges: Floats) -> Self:
        widths = np.diff(edges)
        share = np.concatenate(([1.0], np.exp(-np.cumsum(rates * widths))))
        parts = share[:-1] * _mean_until(rates, widths)
        return cls(edges, rates, share, np.concatenate(([0.0], np.cumsum(parts))))

    def _at(self, tokens: Floats) -> tuple[Floats, Floats]:
        """Share of rows that come so far, and the mean of what they have produced by then."""
        at = np.clip(np.searchsorted(self.edges, tokens, side="right") - 1, 0, len(self.rates) - 1)
        beyond = tokens - self.edges[at]
        share = self.share[at] * np.exp(-self.rates[at] * beyond)
        whole = self.whole[at] + self.share[at] * _mean_until(self.rates[at], beyond)
        return np.maximum(share, LEAST_SHARE), whole

    def expected(self, produced: Floats, budget: Floats, units: Floats) -> Floats:
        """Tokens that rows will still produce, on average; a unit of each row is so many."""
        share, before = self._at(produced / units)
        _, until = self._at(budget / units)
        left = budget - produced
        return np.clip((until - before) / share * units, np.minimum(left, 1.0), left)

    def longest(self, produced: Floats, budget: Floats, units: Floats, counts: Ints) -> float:
        """So many tokens from now on half a row is left, on average, of these rows; `counts` of
        each kind."""
        left = budget - produced
        low, high = 0.0, float(left.max(initial=0))
        share, _ = self._at(produced / units)
        for _ in range(12):
            middle = (low + high) / 2
            then, _ = self._at((produced + middle) / units)
            running = (counts * np.where(left > middle, np.minimum(then / share, 1.0), 0.0)).sum()
            low, high = (middle, high) if running > 0.5 else (low, middle)
        return high


def _mean_until(rates: Floats, widths: Floats) -> Floats:
    """The mean of an exponential time of each rate that is cut at `widths`."""
    tiny = rates * widths < 1e-9
    safe = np.where(tiny, 1.0, rates)
    found: Floats = np.where(tiny, widths, -np.expm1(-safe * widths) / safe)
    return found


def slope_of(prompt: Ints, produced: Ints) -> float:
    """By which power of the prompt's length answers grow, of rows that have stopped; 0 where there
    are too few to say."""
    if len(prompt) < LEAST_STOPS:
        return 0.0
    x, y = np.log(prompt), np.log(np.maximum(produced, 1))
    across, along = x - x.mean(), y - y.mean()
    square = float((across * across).sum())
    if square < 1e-6 * len(prompt):
        return 0.0
    slope = float((across * along).sum()) / square
    explained = slope * slope * square / max(float((along * along).sum()), 1e-12)
    return min(max(slope, 0.0), 1.0) if explained > LEAST_EXPLAINED else 0.0


def stops_of(
    produced: Floats, stopped: npt.NDArray[np.bool_], weight: Ints, most: float
) -> tuple[Stops, Stops]:
    """Of rows that have begun: what each has produced, and whether it stopped there by itself, in
    units; each stands for `weight` rows. The first has rates so high, the second so low, as the
    number of stops seen allows (two standard deviations). `most`: the largest budget."""
    edges = np.geomspace(most / SPAN, most, BINS)
    edges = np.concatenate(([0.0], edges))
    widths = np.diff(edges)
    at = np.clip(np.searchsorted(edges, produced, side="left") - 1, 0, len(widths) - 1)
    ends = np.bincount(at, weight, minlength=len(widths))
    inside = np.bincount(at, weight * (produced - edges[at]), minlength=len(widths))
    beyond = weight.sum() - np.cumsum(ends)
    exposure = inside + beyond * widths
    stops = np.bincount(at[stopped], weight[stopped], minlength=len(widths))
    seen, over = float(stops.sum()), float(exposure.sum())
    mean = seen / over if over else 0.0
    rates = (stops + PRIOR_ROWS * mean * widths) / (exposure + PRIOR_ROWS * widths)
    if seen:
        spread = 2 / math.sqrt(seen)
        fewer = rates * max(1 - spread, 0.0)
        return Stops.of(rates * (1 + spread), edges), Stops.of(fewer, edges)
    # Before anything is known of stops the range is all that can be.
    high = RULE_OF_THREE / over if over else 1.0
    return Stops.of(np.full(len(widths), high), edges), Stops.of(np.zeros(len(widths)), edges)
