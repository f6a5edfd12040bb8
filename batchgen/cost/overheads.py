"""What passes cost beyond their operators, from passes of real runs. It measures nothing.

A cost model that knows its operators one by one is wrong about whole passes: calls between them,
sampling, bookkeeping, caches that the other operators have emptied, experts that real text wakes
less evenly. The rest, measured time less the operators' time, is kept by decoding rows and by
prompt tokens of a pass and interpolated:

    pass = operators + step_s + decode(rows) + context(rows) * context + prefill(tokens)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, CostModel, FloatArray

TRIMMED = 0.1  # of the passes of a bin, at each end: stalls and clocks that jumped
STEPS_PER_OCTAVE = 2  # bins of a count: two per doubling
DOUBT = 0.1  # contexts that differ by this part tell half of a slope


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPass:
    """Load of a pass of a one-rank engine, as in `PassLoad`, and the seconds from the end of the
    pass before it to its own end."""

    decodes: int
    context: int
    chunk_tokens: int
    chunk_pairs: int
    chunk_reads: int
    samples: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Seconds of a pass beyond its operators. `decode` and `prefill`: points (count, seconds) by
    rising count; `context`: points (rows, seconds per KV token that decodes read). All but step_s
    may be negative, where operators cost less inside a pass than alone."""

    step_s: float = 0.0
    context: tuple[tuple[int, float], ...] = ()
    decode: tuple[tuple[int, float], ...] = ()
    prefill: tuple[tuple[int, float], ...] = ()

    def decode_s(self, rows: FloatArray) -> FloatArray:
        """Seconds by decoding rows; 0 for none."""
        return _interpolated(self.decode, rows)

    def context_s(self, rows: FloatArray) -> FloatArray:
        """Seconds per KV token by decoding rows: straight lines, the last values beyond."""
        if not self.context:
            return np.zeros_like(rows)
        xs, ys = np.array(self.context, dtype=np.float64).T
        return np.asarray(np.interp(rows, xs, ys))

    def prefill_s(self, tokens: FloatArray) -> FloatArray:
        """Seconds by prompt tokens; 0 for none."""
        return _interpolated(self.prefill, tokens)


def predicted_s(cost: CostModel, item: MeasuredPass) -> float:
    """Seconds of a measured pass by a cost model."""
    return (
        cost.pass_one_ps(
            item.decodes,
            item.context,
            item.chunk_tokens,
            item.chunk_pairs,
            item.chunk_reads,
            item.samples,
        )
        / PS_PER_S
    )


def fit_overheads(cost: CostModel, passes: Sequence[MeasuredPass]) -> Overheads:
    """Overheads that make `cost`, a model without any, right about `passes` on the average.

    Passes of one kind give the sums of step_s and one part; passes with both kinds tell step_s
    apart. Without those it is the part of the smallest pass.
    """
    rest = [item.seconds - predicted_s(cost, item) for item in passes]
    context = Overheads(context=_slopes(passes, rest))
    rows = np.array([float(item.decodes) for item in passes])
    tokens = np.array([float(item.context) for item in passes])
    rest = [float(r) for r in np.array(rest) - context.context_s(rows) * tokens]
    pairs = list(zip(passes, rest, strict=True))
    decode = _binned((p.decodes, r) for p, r in pairs if not p.chunk_tokens)
    prefill = _binned((p.chunk_tokens, r) for p, r in pairs if not p.decodes)
    least = min((points[0][1] for points in (decode, prefill) if points), default=0.0)
    shared = [
        _at(decode, p.decodes) + _at(prefill, p.chunk_tokens) - r
        for p, r in pairs
        if p.decodes and p.chunk_tokens
    ]
    step_s = max(0.0, min(least, float(np.median(shared)) if shared else least))
    return Overheads(
        step_s=step_s,
        context=context.context,
        decode=tuple((count, seconds - step_s) for count, seconds in decode),
        prefill=tuple((count, seconds - step_s) for count, seconds in prefill),
    )


def errors_by_kind(cost: CostModel, passes: Sequence[MeasuredPass]) -> dict[str, Any]:
    """By kind of pass, as far as there are any: count, measured seconds together, the relative
    error of their modelled sum, and the median absolute error of a pass."""
    kinds: dict[str, list[MeasuredPass]] = {"decode": [], "mixed": [], "prefill": []}
    for item in passes:
        mixed = "mixed" if item.decodes else "prefill"
        kinds[mixed if item.chunk_tokens else "decode"].append(item)
    result = {}
    for kind, items in kinds.items():
        if items:
            measured = np.array([item.seconds for item in items])
            modelled = np.array([predicted_s(cost, item) for item in items])
            result[kind] = {
                "count": len(items),
                "measured_s": float(measured.sum()),
                "error": float(modelled.sum() / measured.sum() - 1.0),
                "median_error": float(np.median(np.abs(modelled / measured - 1.0))),
            }
    return result


def _bin(count: int) -> int:
    return int(np.floor(STEPS_PER_OCTAVE * np.log2(count)))


def _slopes(passes: Sequence[MeasuredPass], rest: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Points (rows, seconds per context token) from decode passes, one per two octaves."""
    groups: dict[int, list[tuple[MeasuredPass, float]]] = {}
    for item, seconds in zip(passes, rest, strict=True):
        if not item.chunk_tokens:
            groups.setdefault(int(np.log2(item.decodes) / 2), []).append((item, seconds))
    points = {}
    for number in sorted(groups):
        rows = round(float(np.mean([item.decodes for item, _ in groups[number]])))
        points[rows] = _slope(groups[number])
    return tuple(points.items())


def _slope(samples: Sequence[tuple[MeasuredPass, float]]) -> float:
    """How the rest grows with the context within bins of rows, drawn towards 0 where contexts
    hardly differ. Errors count relative to the pass; those that fit worst are left out once."""
    names, number = np.unique([_bin(p.decodes) for p, _ in samples], return_inverse=True)
    context = np.array([float(p.context) for p, _ in samples])
    rest = np.array([r for _, r in samples])
    weight = np.array([p.seconds for p, _ in samples]) ** -2.0
    slope = 0.0
    for _ in range(2):
        total = np.maximum(np.bincount(number, weight, len(names)), 1e-300)
        mean_context, mean_rest = (
            (np.bincount(number, weight * column, len(names)) / total)[number]
            for column in (context, rest)
        )
        x, y = context - mean_context, rest - mean_rest
        doubt = float((weight * (DOUBT * mean_context) ** 2).sum())
        slope = float((weight * x * y).sum()) / (float((weight * x * x).sum()) + doubt)
        error = np.abs(y - slope * x) * np.sqrt(weight)
        weight = np.where(error <= np.quantile(error, 1 - 2 * TRIMMED), weight, 0.0)
    return slope


def _binned(samples: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Mean of the middle samples of each bin of counts, at the bin's mean count."""
    bins: dict[int, list[tuple[int, float]]] = {}
    for count, seconds in samples:
        bins.setdefault(_bin(count), []).append((count, seconds))
    points = {}
    for number in sorted(bins):
        found = sorted(bins[number], key=lambda sample: sample[1])
        cut = int(TRIMMED * len(found))
        counts, seconds = np.array(found[cut : len(found) - cut], dtype=np.float64).T
        points[round(float(counts.mean()))] = float(seconds.mean())
    return list(points.items())


def _at(points: Sequence[tuple[int, float]], count: int) -> float:
    return float(_interpolated(tuple(points), np.array([float(count)]))[0])


def _interpolated(points: tuple[tuple[int, float], ...], counts: FloatArray) -> FloatArray:
    """Straight lines between the points; before the first its value, beyond the last in proportion
    to the count. 0 at count 0 and without points."""
    if not points:
        return np.zeros_like(counts)
    xs, ys = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    inside = np.interp(counts, xs, ys) * np.maximum(counts / xs[-1], 1.0)
    return np.asarray(np.where(counts > 0, inside, 0.0))
