"""Fits launches and corrections to measured rows, and tells errors on rows not fitted.

kernels      the sum of kernels without launches of element-wise ones, nothing fitted
physics      a host constant per engine: what the launch of an element-wise kernel takes
left out     the same, the constant fitted to the other models of the engine
corrected    physics times a factor per engine, GPU generation and model, fitted without the
             configuration that it is told on
halves       the same, fitted to one half of a family's configurations and told on the other

A configuration is a family's precision, GPU and layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.cost.api import FloatArray
from batchgen.cost.silicon.clean import Case

LEAST_FITTED = 8  # rows of a family that a factor needs
KINDS = ("kernels", "physics", "left out", "corrected", "halves")
Key = Callable[[Case], str]
TABLES: dict[str, Key] = {
    "GPU": lambda case: case.setup.gpu.name,
    "engine": lambda case: case.setup.engine,
    "model": lambda case: case.setup.model.name,
    "family": lambda case: " ".join(family(case)),
    "precision": lambda case: case.row.precision or "bf16",
    "GPUs": lambda case: f"{case.setup.layout.gpus_per_engine}",
    "rows": lambda case: _bin(case.setup.batch * case.setup.layout.attention_dp),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The largest errors that pass."""

    median: float
    p90: float

    def met(self, found: Errors) -> bool:
        return found.median <= self.median and found.p90 <= self.p90


# Targets of the project: from physics alone with one host constant per engine, and over all.
BARS = {"physics": Bar(median=0.12, p90=0.35), "corrected": Bar(median=0.10, p90=0.30)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Predicted / measured - 1: quantiles of the absolute value, and the median with its sign."""

    median: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """Errors of the rows of one `name` in a table, by kind of prediction."""

    table: str
    name: str
    count: int
    errors: dict[str, Errors]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """`launch_s`: seconds of the launch of an element-wise kernel by engine, fitted to all rows.
    `predicted`: seconds by kind [C]. `missed`: kinds above their bar."""

    launch_s: dict[str, float]
    predicted: dict[str, FloatArray]
    rows: list[TableRow]
    missed: list[str]


def assess(cases: Sequence[Case]) -> Assessment:
    """Raises ValueError without cases."""
    if not cases:
        raise ValueError("no rows to assess")
    measured = np.array([case.row.tpot_s for case in cases])
    launch_s = fit_launches(cases)
    physics = _with_launches(cases, lambda case: launch_s[case.setup.engine])
    configurations = _configurations(cases)
    predicted = {
        "kernels": np.array([case.prediction.tpot_s for case in cases]),
        "physics": physics,
        "left out": _left_out(cases),
        "corrected": _corrected(cases, physics, configurations),
        "halves": _corrected(cases, physics, configurations % 2),
    }
    rows = [_table_row("all", "all", range(len(cases)), predicted, measured)]
    for table, key in TABLES.items():
        groups: dict[str, list[int]] = {}
        for number, case in enumerate(cases):
            groups.setdefault(key(case), []).append(number)
        names = sorted(groups, key=lambda name: (not name.isdigit(), name.zfill(8)))
        rows += [_table_row(table, name, groups[name], predicted, measured) for name in names]
    missed = [kind for kind, bar in BARS.items() if not bar.met(rows[0].errors[kind])]
    return Assessment(launch_s=launch_s, predicted=predicted, rows=rows, missed=missed)


def family(case: Case) -> tuple[str, str, str]:
    """What a correction is for: engine, model, GPU generation."""
    return case.setup.engine, case.setup.model.name, case.setup.generation


def fit_launches(cases: Sequence[Case]) -> dict[str, float]:
    """By engine the seconds of a launch, not below 0, of least absolute relative error."""
    found = {}
    for engine in sorted({case.setup.engine for case in cases}):
        own = [case for case in cases if case.setup.engine == engine]
        launches = np.array([case.prediction.launches for case in own])
        measured = np.array([case.row.tpot_s for case in own])
        kernels = np.array([case.prediction.tpot_s for case in own])
        # |(k + h n) / m - 1| is |h - (m - k) / n| times n / m: its least sum is a weighted median.
        best = weighted_median((measured - kernels) / launches, launches / measured)
        found[engine] = max(0.0, best)
    return found


def weighted_median(values: FloatArray, weights: FloatArray) -> float:
    """The least of the values that half of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def errors(predicted: FloatArray, measured: FloatArray) -> Errors:
    ratio = predicted / measured - 1.0
    off = np.abs(ratio)
    return Errors(
        median=float(np.quantile(off, 0.5)),
        p90=float(np.quantile(off, 0.9)),
        bias=float(np.quantile(ratio, 0.5)),
    )


def _with_launches(cases: Sequence[Case], launch_s: Callable[[Case], float]) -> FloatArray:
    return np.array([case.prediction.with_launches_s(launch_s(case)) for case in cases])


def _left_out(cases: Sequence[Case]) -> FloatArray:
    """With the engine's constant of its other models; 0 where it has no other."""
    by_model: dict[tuple[str, str], float] = {}
    for engine, model in sorted({(case.setup.engine, case.setup.model.name) for case in cases}):
        others = [
            case for case in cases if case.setup.engine == engine and case.setup.model.name != model
        ]
        by_model[engine, model] = fit_launches(others).get(engine, 0.0)
    return _with_launches(cases, lambda case: by_model[case.setup.engine, case.setup.model.name])


def _corrected(cases: Sequence[Case], physics: FloatArray, parts: NDArray[np.int64]) -> FloatArray:
    """Times the factor of the family, from those of its rows that are in other `parts` [C]."""
    logs = np.log(np.array([case.row.tpot_s for case in cases]) / physics)
    families: dict[tuple[str, str, str], list[int]] = {}
    for number, case in enumerate(cases):
        families.setdefault(family(case), []).append(number)
    found = physics.copy()
    for numbers in families.values():
        members = np.array(numbers)
        for part in np.unique(parts[members]):
            fitted, told = members[parts[members] != part], members[parts[members] == part]
            if len(fitted) >= LEAST_FITTED:
                found[told] *= np.exp(np.median(logs[fitted]))
    return found


def _configurations(cases: Sequence[Case]) -> NDArray[np.int64]:
    """The number of each case's configuration [C], families together, in a fixed order."""
    keys = [
        (*family(case), case.row.precision, case.setup.gpu.name, str(case.setup.layout))
        for case in cases
    ]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _table_row(
    table: str,
    name: str,
    numbers: Sequence[int],
    predicted: Mapping[str, FloatArray],
    measured: FloatArray,
) -> TableRow:
    which = np.array(numbers, dtype=np.int64)
    found = {kind: errors(predicted[kind][which], measured[which]) for kind in KINDS}
    return TableRow(table=table, name=name, count=len(which), errors=found)


def _bin(rows: int) -> str:
    """Powers of four: rows of an engine."""
    low = 1
    while rows >= 4 * low:
        low *= 4
    return str(low)
