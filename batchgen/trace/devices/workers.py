"""Times of workers that do the same work, as slow spells of their GPUs. Reads no file."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from batchgen.trace.devices.events import FACTORS, NORMAL, Trouble

WINDOW_PS = 60 * 10**12
DEAD_BAND = 30
"""A factor this near to 1, in thousandths, is 1: noise of a window's median."""
STEP = 50
"""A factor that moves by less than this, in thousandths, is the same."""

Sample = tuple[int, int, int]
"""(worker, time, duration in any unit)."""


def slow_workers(samples: Iterable[Sample]) -> list[Trouble]:
    """A line wherever the pace of a worker changes: per window, its median over that of all."""
    windows: dict[int, dict[int, list[int]]] = {}
    for worker, at_ps, duration in samples:
        windows.setdefault(at_ps // WINDOW_PS, {}).setdefault(worker, []).append(duration)
    factors: dict[int, int] = {}
    found = []
    for window, by_worker in sorted(windows.items()):
        middle = median(one for times in by_worker.values() for one in times)
        for worker, times in sorted(by_worker.items()):
            factor = round(median(times) / middle * 100) * (NORMAL // 100) if middle else NORMAL
            if abs(factor - NORMAL) < DEAD_BAND:
                factor = NORMAL
            factor = min(max(factor, FACTORS["slow"][0]), FACTORS["slow"][1])
            if abs(factor - factors.get(worker, NORMAL)) >= STEP:
                factors[worker] = factor
                found.append(Trouble(window * WINDOW_PS, "slow", worker, factor=factor))
    return found
