"""How wrong fitted kernels are on shapes and on GPUs that they were not fitted to; the bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.fitted import Errors, errors, fit, held_out
from batchgen.cost.operators.kinds import OPERATORS
from batchgen.cost.operators.points import Points
from batchgen.hardware import load_gpu

Pair = tuple[FloatArray, FloatArray]  # predicted, measured
MOST_POOLED = 20_000  # points of one GPU in a fit of several; more change nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The largest errors that pass: median and 90th percentile of long kernels, median of short."""

    median: float
    p90: float
    short_median: float = float("inf")

    def met(self, found: Errors) -> bool:
        short = not found.short_count or found.short_median <= self.short_median
        return found.median <= self.median and found.p90 <= self.p90 and short


BARS = {
    "gemm": Bar(median=0.06, p90=0.20, short_median=0.15),
    "decode_attention": Bar(median=0.06, p90=0.20, short_median=0.15),
    "prefill_attention": Bar(median=0.06, p90=0.20, short_median=0.15),
    "mla_decode": Bar(median=0.06, p90=0.20, short_median=0.15),
    "mla_prefill": Bar(median=0.06, p90=0.20, short_median=0.15),
    "experts": Bar(median=0.10, p90=0.25),
    "collectives": Bar(median=0.06, p90=0.20, short_median=0.15),  # ours: as for products
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Errors of one operator on one GPU ("all": together), by what was left out of the fits."""

    operator: str
    gpu: str
    variant: str
    left_out: str  # "shapes", "models" or "gpu"
    errors: Errors


def assess(
    tables: Sequence[Points], say: Callable[[str], None] = lambda line: None
) -> Iterator[Row]:
    """A row per table and kind of omission, then one per operator over all its tables."""
    together: dict[tuple[str, str], list[Pair]] = {}
    for points in tables:
        say(f"{points.operator} {points.gpu} {points.variant}: {len(points)} points")
        operator = OPERATORS[points.operator]
        for left_out, found in (
            ("shapes", held_out(operator, points)),
            ("models", held_out(operator, points, by=operator.model) if operator.model else None),
            ("gpu", _without_gpu(tables, points)),
        ):
            if found is None:
                continue
            pair = found, points.seconds
            together.setdefault((points.operator, left_out), []).append(pair)
            yield Row(
                operator=points.operator,
                gpu=points.gpu,
                variant=points.variant,
                left_out=left_out,
                errors=errors(*pair),
            )
    yield from totals(together)


def totals(together: Mapping[tuple[str, str], Sequence[Pair]]) -> list[Row]:
    """A row per operator and kind of omission over all its predicted and measured seconds."""
    rows = []
    for (name, left_out), pairs in sorted(together.items()):
        predicted, measured = (np.concatenate(side) for side in zip(*pairs, strict=True))
        found = errors(predicted, measured)
        rows.append(Row(operator=name, gpu="all", variant="all", left_out=left_out, errors=found))
    return rows


def _without_gpu(tables: Sequence[Points], points: Points) -> FloatArray | None:
    """Predictions by a fit to the same tables of all other GPUs; None if there are none."""
    others = pooled(
        [
            one
            for one in tables
            if (one.operator, one.variant) == (points.operator, points.variant)
            and one.gpu != points.gpu
        ]
    )
    if not others:
        return None
    fitted = fit(OPERATORS[points.operator], others)
    return fitted.seconds(load_gpu(points.gpu), points.columns)


def pooled(tables: Sequence[Points]) -> list[Points]:
    """At most `MOST_POOLED` points of each, so that no GPU outweighs the others."""
    rng = np.random.default_rng(0)
    return [
        one
        if len(one) <= MOST_POOLED
        else one.take(np.sort(rng.choice(len(one), MOST_POOLED, replace=False)))
        for one in tables
    ]
