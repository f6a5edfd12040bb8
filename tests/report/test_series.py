"""Binned series against a slow reference that walks every step and bin."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from batchgen.report import metrics, series
from batchgen.report.record import RunRecord


def slow_series(record: RunRecord, num_bins: int, weight: np.ndarray) -> np.ndarray:
    start, end = metrics.window_ps(record)
    edges = np.linspace(start, end, num_bins + 1)
    order = [e["engine"] for e in record.engines]
    result = np.zeros((len(order), num_bins))
    steps = record.steps
    for i in range(len(steps["q0"])):
        begin = int(steps["start_ps"][i])
        finish = begin + int(steps["duration_ps"][i])
        for b in range(num_bins):
            overlap = max(0.0, min(finish, edges[b + 1]) - max(begin, edges[b]))
            share = overlap / (edges[b + 1] - edges[b])
            result[order.index(steps["engine"][i]), b] += weight[i] * share
    return result


@pytest.mark.parametrize("num_bins", [1, 7, 64])
def test_binning_equals_the_slow_reference(synthetic: ModuleType, num_bins: int) -> None:
    record = synthetic.toy_record(num_rows=60, num_engines=4, faults=True)
    running = record.steps["running"].astype(float)
    got = series.engine_series(record, num_bins, running)
    np.testing.assert_allclose(got, slow_series(record, num_bins, running), atol=1e-6)


def test_series_average_to_the_metrics(synthetic: ModuleType) -> None:
    record = synthetic.toy_record(num_rows=200, num_engines=8)
    busy = series.engine_series(record, 50)
    assert busy.min() >= 0
    assert busy.max() <= 1 + 1e-9
    assert busy.mean() == pytest.approx(metrics.busy_fraction(record))
    running = series.engine_series(record, 50, record.steps["running"]).sum(axis=0)
    assert running.mean() == pytest.approx(metrics.mean_running(record))


def test_gpu_rows_repeat_engines_and_average_when_there_are_many(synthetic: ModuleType) -> None:
    record = synthetic.toy_record(num_rows=50, num_engines=5, gpus_per_engine=3)
    busy = series.engine_series(record, 10)
    matrix, num_gpus = series.gpu_rows(record, busy)
    assert num_gpus == 15
    np.testing.assert_array_equal(matrix, np.repeat(busy, 3, axis=0))
    small, num_gpus = series.gpu_rows(record, busy, max_rows=5)
    assert num_gpus == 15
    np.testing.assert_allclose(small, busy)
    odd, _ = series.gpu_rows(record, busy, max_rows=4)
    assert odd.shape == (4, 10)
    np.testing.assert_allclose(odd.mean(axis=0), busy.mean(axis=0))


def test_waiting_and_completion_account_for_every_row(synthetic: ModuleType) -> None:
    record = synthetic.toy_record(num_rows=300, num_engines=2, slots=4)
    queue = series.waiting(record, 40)
    assert queue[0] > 250  # two engines of four slots hold 8 of 300
    assert queue[-1] == pytest.approx(0, abs=1)
    t, share = series.completion(record)
    assert share[-1] == 1
    assert t[-1] == pytest.approx(metrics.bct_s(record))
    assert np.all(np.diff(t) >= 0)
