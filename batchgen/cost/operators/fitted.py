"""Fits an operator to its points, predicts with it, and tells its errors on points not fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.base import Operator
from batchgen.cost.operators.points import Columns, Points
from batchgen.cost.surface import Surface, fit_surface
from batchgen.hardware import GpuSpec, load_gpu

LONG_S = 10e-6  # above, errors count in full; below, launches and clocks are most of a time
FOLDS = 5
LEAST_OVER = float(np.log(0.5))  # launches are shorter than floors say, and caches faster than HBM


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Seconds of a kernel: floor times e^surface."""

    operator: Operator
    variant: str
    surface: Surface

    def seconds(self, gpu: GpuSpec, columns: Columns) -> FloatArray:
        """[P] for columns [P]."""
        floor = self.operator.floor_s(gpu, self.variant, columns)
        over = self.surface(self.operator.logs(columns))
        # Far from what was measured a surface may fall below what the peaks allow.
        return np.asarray(floor * np.exp(np.maximum(over, LEAST_OVER)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors, as absolute values: of points of `LONG_S` and more, and of shorter ones."""

    count: int
    median: float
    p90: float
    bias: float
    short_count: int
    short_median: float


def fit(operator: Operator, parts: Sequence[Points]) -> Fitted:
    """One surface for points of one variant, of one GPU or of several."""
    logs = [operator.logs(points.columns) for points in parts]
    over = [
        np.log(
            points.seconds / operator.floor_s(load_gpu(points.gpu), points.variant, points.columns)
        )
        for points in parts
    ]
    columns = {name: np.concatenate([one[name] for one in logs]) for name in logs[0]}
    surface = fit_surface(operator.terms, columns, np.concatenate(over))
    return Fitted(operator=operator, variant=parts[0].variant, surface=surface)


def held_out(
    operator: Operator, points: Points, *, by: Sequence[str] = (), folds: int = FOLDS
) -> FloatArray:
    """Predicted seconds [P], each by a fit that has seen no point like it in the columns `by`,
    those of its shape if none are named; NaN where there is no other."""
    groups = points.groups(by or operator.shape)
    fold = np.random.default_rng(0).permutation(int(groups.max()) + 1)[groups] % folds
    gpu, found = load_gpu(points.gpu), np.full(len(points), np.nan)
    for number in range(folds):
        out = fold == number
        if out.all() or not out.any():
            continue
        fitted = fit(operator, [points.take(~out)])
        found[out] = fitted.seconds(gpu, points.take(out).columns)
    return found


def errors(predicted: FloatArray, measured: FloatArray) -> Errors:
    """Of what was predicted at all; NaN where there is no such point."""
    known = np.isfinite(predicted)
    predicted, measured = predicted[known], measured[known]
    ratio = predicted / measured - 1.0
    off, long = np.abs(ratio), measured >= LONG_S
    return Errors(
        count=int(long.sum()),
        median=_quantile(off[long], 0.5),
        p90=_quantile(off[long], 0.9),
        bias=_quantile(ratio[long], 0.5),
        short_count=int((~long).sum()),
        short_median=_quantile(off[~long], 0.5),
    )


def _quantile(values: NDArray[np.float64], part: float) -> float:
    return float(np.quantile(values, part)) if len(values) else float("nan")
