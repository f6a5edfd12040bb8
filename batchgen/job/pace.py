"""How long a job still takes, from the passes that it ran and the rows that are left. Pure.

A pass takes `fixed + decodes * per_decode + chunk tokens * per_chunk_token` seconds, fitted to the
passes so far, the newest counting most. What is left are at least as many passes as the longest row
needs: in the tail that is what counts, before it the tokens. Both come as a range, for nobody knows
where a row will stop (`batchgen.job.lengths`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from batchgen.job.lengths import Floats, slope_of, stops_of
from batchgen.job.load import Load

KEPT = 0.97
"""What the passes before count for when new ones are told: the context of rows grows."""
LEAST_PASSES = 4
"""With fewer that decoded nobody can say what a token takes."""


@dataclass(frozen=True, slots=True)
class PassTime:
    """Seconds of a pass: of every one, of each decoding row, of each prompt token."""

    fixed_s: float
    per_decode_s: float
    per_chunk_token_s: float


class Pace:
    """The times of passes so far, as the sums that a fit needs."""

    def __init__(self) -> None:
        self._products = np.zeros((3, 3))
        self._times = np.zeros(3)
        self.decode_passes = 0
        self._most_decodes = 1
        self._chunk_tokens = 0.0

    def tell(
        self, decodes: Sequence[int], chunk_tokens: Sequence[int], seconds: Sequence[float]
    ) -> None:
        """Passes that have ended: rows that decoded, prompt tokens, time until the next began."""
        if not len(seconds):
            return
        loads = np.ones((len(seconds), 3))
        loads[:, 1], loads[:, 2] = decodes, chunk_tokens
        self._products = KEPT * self._products + loads.T @ loads
        self._times = KEPT * self._times + loads.T @ np.asarray(seconds, dtype=np.float64)
        self._chunk_tokens += float(loads[:, 2].sum())
        self.decode_passes += int((loads[:, 1] > 0).sum())
        self._most_decodes = max(self._most_decodes, int(loads[:, 1].max()))

    @property
    def seats(self) -> int:
        """The most rows that decoded together."""
        return self._most_decodes

    def computed_part(self, load: Load) -> float:
        """Of prompt tokens, what had to be computed so far; the rest were prefixes of others. Rows
        that were computed twice do not make it more than 1."""
        return min(1.0, self._chunk_tokens / load.prompt_done) if load.prompt_done else 1.0

    def pass_time(self) -> PassTime | None:
        """The fit with no negative part and the least squares; None before the first pass. Where
        all passes were alike, their time is that of every pass: adding rows is thought free."""
        count = self._products[0, 0]
        if not count:
            return None
        # A faint memory of passes of no rows that took the mean time settles what is not seen.
        products = self._products + 1e-6 * np.diag(np.diag(self._products) + 1e-12)
        products[0, 0] += 1e-3 * count
        times = self._times.copy()
        times[0] += 1e-3 * self._times[0]
        best, least = PassTime(float(self._times[0] / count), 0.0, 0.0), math.inf
        for size in (3, 2, 1):
            for some in combinations(range(3), size):
                part = np.ix_(some, some)
                found = np.linalg.solve(products[part], times[list(some)])
                if (found < 0).any():
                    continue
                whole = np.zeros(3)
                whole[list(some)] = found
                squares = float(whole @ products @ whole - 2 * whole @ times)
                if squares < least:
                    best, least = PassTime(*map(float, whole)), squares
        return best


def left_s(load: Load, pace: Pace) -> tuple[float, float] | None:
    """(least, most) seconds until the last row has ended; None as long as too few rows have
    decoded."""
    one = pace.pass_time()
    if one is None or pace.decode_passes < LEAST_PASSES:
        return None
    begun = load.begun
    going = ~begun.is_over
    nothing = np.zeros(len(load.fresh_budget))
    prompt = np.concatenate((begun.prompt[going], load.fresh_prompt))
    produced: Floats = np.concatenate((begun.produced[going], nothing)).astype(np.float64)
    budget: Floats = np.concatenate((begun.budget[going], load.fresh_budget)).astype(np.float64)
    counts = np.concatenate((begun.weight[going], load.fresh_counts))
    if not len(counts):
        return 0.0, 0.0
    slope = slope_of(begun.prompt[begun.stopped], begun.produced[begun.stopped])
    units: Floats = np.power(np.maximum(prompt, 1).astype(np.float64), slope)
    ours: Floats = np.power(np.maximum(begun.prompt, 1).astype(np.float64), slope)
    most = float(max((begun.budget / ours).max(initial=1), (budget / units).max(initial=1)))
    soon, late = stops_of(begun.produced / ours, begun.stopped, begun.weight, most)

    prompt_left = load.prompt_left * pace.computed_part(load)

    def seconds(passes: float, tokens: float) -> float:
        work_s = tokens * one.per_decode_s + prompt_left * one.per_chunk_token_s
        return passes * one.fixed_s + work_s

    tokens = float((counts * soon.expected(produced, budget, units)).sum())
    passes = max(tokens / pace.seats, soon.longest(produced, budget, units, counts))
    least = seconds(passes, tokens)
    # Graham's bound: the longest row is the last to get a place.
    tokens = float((counts * late.expected(produced, budget, units)).sum())
    longest = late.longest(produced, budget, units, counts)
    passes = max(tokens / pace.seats + (longest if load.waits else 0.0), longest)
    return least, max(least, seconds(passes, tokens))
