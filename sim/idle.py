"""How many engines have nothing to do, over time, from the steps of a run. Numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from batchgen.cost.api import FloatArray


class Idle:
    """How many of the engines that may decode and are there have nothing to do, over time."""

    def __init__(
        self,
        steps: Mapping[str, Any],
        counts: Sequence[bool],
        speeds: Sequence[Sequence[tuple[int, int]]],
    ) -> None:
        counted = np.array(counts, dtype=bool)[steps["engine"]]
        start = steps["start_ps"][counted]
        end = start + np.maximum(steps["duration_ps"][counted], 0)
        times = [start, end, np.zeros(1, dtype=np.int64)]
        idle = [np.full(len(start), -1), np.ones(len(start)), np.array([sum(counts)])]
        live = [np.zeros(len(start)), np.zeros(len(start)), np.array([sum(counts)])]
        for engine, changes in enumerate(speeds):
            for (_, was), (when, now) in pairwise(changes):
                if counts[engine] and (was == 0) != (now == 0):
                    times.append(np.array([when]))
                    idle.append(np.array([1 if was == 0 else -1]))
                    live.append(np.array([1 if was == 0 else -1]))
        at, where = np.unique(np.concatenate(times), return_inverse=True)
        change = np.bincount(where, np.concatenate(idle), minlength=len(at))
        there = np.bincount(where, np.concatenate(live), minlength=len(at))
        num_idle = np.maximum(np.cumsum(change), 0.0)
        part = np.minimum(num_idle / np.maximum(np.cumsum(there), 1.0), 1.0)
        self.at = at.astype(np.float64)
        self._part = _integral(self.at, part)
        self._any = _integral(self.at, (num_idle > 0.5).astype(np.float64))

    def of(self, begin: FloatArray, end: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(part of them that is idle, part of the time in which some are) over each of the times,
        from 0 to 1."""
        span = np.maximum(end - begin, 1.0)
        means = [
            (np.interp(end, self.at, sums) - np.interp(begin, self.at, sums)) / span
            for sums in (self._part, self._any)
        ]
        return np.clip(means[0], 0.0, 1.0), np.clip(means[1], 0.0, 1.0)


def _integral(at: FloatArray, value: FloatArray) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(value[:-1] * np.diff(at))])
