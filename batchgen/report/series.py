"""A run over time: steps binned by overlap, per engine or summed. Numbers only, no drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchgen.report.metrics import window_ps
from batchgen.report.record import RunRecord, stage_column
from batchgen.report.stretches import stretches

Floats = NDArray[np.float64]


def bin_edges_s(record: RunRecord, num_bins: int) -> Floats:
    """Edges of equal bins over the window, seconds since the first arrival; (num_bins + 1,)."""
    start, end = window_ps(record)
    return np.linspace(0.0, max(end - start, 1) / 1e12, num_bins + 1)


def engine_series(record: RunRecord, num_bins: int, weight: NDArray[Any] | None = None) -> Floats:
    """Time mean per engine and bin of a quantity that holds during each step.

    `weight` is per step (None: 1, which gives the busy fraction); shape (engines, num_bins), in
    the order of `record.engines`. A step adds to a bin by the share of the bin that it covers.
    """
    steps = record.steps
    weights = np.ones(len(steps["engine"])) if weight is None else weight
    spans = steps["engine"], steps["start_ps"], steps["duration_ps"]
    return _binned(record, num_bins, *spans, weights)


def running_series(record: RunRecord, num_bins: int) -> Floats:
    """Rows in passes per engine and bin, each until its own end; (engines, num_bins)."""
    cut = stretches(record)
    return _binned(record, num_bins, cut.engine, cut.start_ps, cut.duration_ps, cut.running)


def kv_series(record: RunRecord, num_bins: int) -> Floats:
    """KV pages leased per engine and bin, see `stretches`; (engines, num_bins)."""
    cut = stretches(record)
    return _binned(record, num_bins, cut.engine, cut.start_ps, cut.duration_ps, cut.kv_pages)


def _binned(
    record: RunRecord,
    num_bins: int,
    engine: NDArray[np.int64],
    start_ps: NDArray[np.int64],
    duration_ps: NDArray[np.int64],
    weight: NDArray[Any],
) -> Floats:
    """`engine_series` of any spans of time, all arrays of one length."""
    start, end = window_ps(record)
    num_engines, span = len(record.engines), max(end - start, 1)
    order = {int(e["engine"]): i for i, e in enumerate(record.engines)}
    engines, inverse = np.unique(engine, return_inverse=True)
    row = np.array([order[int(e)] for e in engines], dtype=np.int64)[inverse]
    weights = np.asarray(weight, dtype=np.float64)

    # In units of bins: begin and finish of each span, clipped to the window.
    scale = num_bins / span
    begin = np.clip((start_ps - start) * scale, 0.0, num_bins)
    finish = np.clip((start_ps + duration_ps - start) * scale, 0.0, num_bins)
    width = num_bins + 2
    first = np.minimum(begin.astype(np.int64), num_bins)
    last = np.minimum(finish.astype(np.int64), num_bins)

    # Constant weight from `first` to `last` as differences, then the two partial bins.
    def scatter(column: NDArray[np.int64], amount: Floats) -> Floats:
        flat: Floats = np.bincount(
            row * width + column, amount, minlength=num_engines * width
        ).astype(np.float64)
        return flat.reshape(num_engines, width)

    slope = scatter(first, weights) - scatter(last, weights)
    partial = scatter(last, weights * (finish - last)) - scatter(first, weights * (begin - first))
    series = (np.cumsum(slope, axis=1) + partial)[:, :num_bins]
    # Cancellation leaves values like -1e-16.
    series[np.abs(series) < 1e-9] = 0.0
    return np.asarray(series, dtype=np.float64)


def busy_series(record: RunRecord, num_bins: int) -> Floats:
    """Share of time in passes per engine and bin; of a pipeline, of the stage whose GPUs the engine
    stands for, all batches together, as if a step used its stages evenly."""
    stages = record.num_stages
    if stages == 1:
        return engine_series(record, num_bins)
    spans = np.maximum(record.steps["duration_ps"], 1)
    found = np.zeros((len(record.engines) // stages, stages, num_bins))
    for stage in range(stages):
        shares = record.steps[stage_column(stage)] / spans
        by_engine = engine_series(record, num_bins, shares)
        found[:, stage] = by_engine.reshape(-1, stages, num_bins).sum(axis=1)
    return np.asarray(np.minimum(found, 1.0).reshape(-1, num_bins), dtype=np.float64)


def gpu_rows(record: RunRecord, series: Floats, max_rows: int = 512) -> tuple[Floats, int]:
    """Repeat engine rows per GPU, then average neighbours down to at most `max_rows` rows.

    Returns the matrix and the number of GPUs in it.
    """
    gpus = np.array([int(e["num_gpus"]) for e in record.engines], dtype=np.int64)
    total = int(gpus.sum())
    if total <= max_rows:
        return np.repeat(series, gpus, axis=0), total
    # Average through the integral over the GPU axis: exact for any group size.
    integral = np.vstack([np.zeros(series.shape[1]), np.cumsum(series * gpus[:, None], axis=0)])
    at = np.concatenate([[0], np.cumsum(gpus)])
    cuts = np.linspace(0, total, max_rows + 1)
    columns = [np.interp(cuts, at, integral[:, b]) for b in range(series.shape[1])]
    averaged = np.diff(np.stack(columns, axis=1), axis=0) * (max_rows / total)
    return np.asarray(averaged, dtype=np.float64), total


def completion(record: RunRecord) -> tuple[Floats, Floats]:
    """Completion curve: seconds since the first arrival, share of all rows ended (0 to 1)."""
    start, _ = window_ps(record)
    ends = np.sort(record.rows["end_ps"][record.rows["end_ps"] >= 0])
    share = np.arange(1, len(ends) + 1) / max(len(record.rows["row"]), 1)
    return (ends - start) / 1e12, share


def waiting(record: RunRecord, num_bins: int) -> Floats:
    """Rows arrived, not ended and not running, mean per bin; suspended rows count as waiting."""
    start, end = window_ps(record)
    present = _mean_count(record.rows["arrival_ps"], start, end, num_bins)
    gone = _mean_count(record.rows["end_ps"][record.rows["end_ps"] >= 0], start, end, num_bins)
    running = running_series(record, num_bins).sum(axis=0)
    return np.asarray(np.maximum(present - gone - running, 0.0), dtype=np.float64)


def _mean_count(events_ps: NDArray[Any], start: int, end: int, num_bins: int) -> Floats:
    """Mean per bin of the number of events so far: the derivative of its own integral."""
    times = np.sort(np.clip(events_ps, start, end).astype(np.float64) - start)
    sums = np.concatenate([[0.0], np.cumsum(times)])
    edges = np.linspace(0.0, max(end - start, 1), num_bins + 1)
    before = np.searchsorted(times, edges, side="right")
    means = np.diff(before * edges - sums[before]) / np.diff(edges)
    return np.asarray(means, dtype=np.float64)
