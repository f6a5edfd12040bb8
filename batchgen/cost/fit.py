"""Small fits of measured points: monotone curves and non-negative least squares. No units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchgen.cost.api import FloatArray


class Curve:
    """Non-decreasing piecewise-linear curve through points; the last slope continues.

    Several measurements at one x count with their median; a point below an earlier one is lifted
    to it, since more work never takes less time and a dip is noise.
    """

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        grouped: dict[float, list[float]] = {}
        for x, y in zip(xs, ys, strict=True):
            grouped.setdefault(float(x), []).append(float(y))
        self.xs = np.array(sorted(grouped))
        medians = [float(np.median(grouped[float(x)])) for x in self.xs]
        self.ys = np.maximum.accumulate(np.array(medians))
        if self.xs.size > 1:
            # Over the upper half of the points: the last pair alone is noisy.
            low = self.xs.size // 2 - (self.xs.size == 2)
            self.tail = float((self.ys[-1] - self.ys[low]) / (self.xs[-1] - self.xs[low]))
        else:
            self.tail = float(self.ys[0] / self.xs[0]) if self.xs[0] > 0 else 0.0

    def __call__(self, x: FloatArray) -> FloatArray:
        inside = np.interp(x, self.xs, self.ys)
        return np.asarray(inside + np.maximum(x - self.xs[-1], 0.0) * self.tail)

    def at(self, x: float) -> float:
        return float(self(np.array([x]))[0])


def nonnegative_fit(columns: FloatArray, seconds: FloatArray) -> FloatArray:
    """Coefficients >= 0 of seconds ~ columns [points, terms], by relative error.

    Active set by elimination: while a coefficient is negative, drop the most negative one. Exact
    for the handful of terms here, where dropping never has to be undone.
    """
    weighted = columns / seconds[:, None]
    target = np.ones(seconds.size)
    scale = np.maximum(np.abs(weighted).max(axis=0), 1e-300)
    active = list(range(columns.shape[1]))
    found = np.zeros(columns.shape[1])
    while active:
        part, *_ = np.linalg.lstsq(weighted[:, active] / scale[active], target, rcond=None)
        if (part >= 0).all():
            found[active] = part / scale[active]
            break
        active.pop(int(part.argmin()))
    return found
