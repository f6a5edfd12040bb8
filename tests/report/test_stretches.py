"""Rows that end inside a step count until their own end, and give their pages back there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from batchgen.report import metrics, series
from batchgen.report.record import RunRecord
from batchgen.report.stretches import stretches
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

S = 10**12


def one_step(synthetic: ModuleType, page_tokens: int, kv_pages: int) -> RunRecord:
    """Four rows of two pages each begin a step of 100 passes and 100 s; they end after 20, 20, 50
    and 100 passes, with 36, 36, 66 and 116 tokens in pages of 16: 3, 3, 5 and 8 pages."""
    rows = synthetic.empty_columns(synthetic.ROW_COLUMNS, 4)
    rows["row"][:] = range(4)
    rows["prompt_tokens"][:] = 16
    rows["output_tokens"][:] = (21, 21, 51, 101)
    rows["first_token_ps"][:] = S
    rows["end_ps"][:] = np.array((21, 21, 51, 101)) * S
    steps = synthetic.empty_columns(synthetic.STEP_COLUMNS, 2)
    steps["passes"][:] = (1, 100)
    steps["q0"][:] = (0, 1)
    steps["start_ps"][:] = (0, S)
    steps["duration_ps"][:] = (S, 100 * S)
    steps["kind"][:] = (2, 0)
    steps["running"][:] = (0, 4)
    steps["kv_pages"][:] = (4, kv_pages)
    toy = synthetic.toy_record(num_rows=4, num_engines=1)
    toy.engines[0]["page_tokens"] = page_tokens
    fields = {name: getattr(toy, name) for name in toy.__slots__}
    return RunRecord(**(fields | {"rows": rows, "steps": steps}))


def test_a_step_is_cut_where_rows_end(synthetic: ModuleType) -> None:
    record = one_step(synthetic, page_tokens=0, kv_pages=9)
    cut = stretches(record)
    busy = cut.duration_ps > 0
    assert cut.running[busy].tolist() == [0, 4, 2, 1]
    assert (cut.duration_ps[busy] // S).tolist() == [1, 20, 30, 50]
    assert metrics.mean_running(record) == pytest.approx((4 * 20 + 2 * 30 + 50) / 101)
    binned = series.running_series(record, 101)[0]
    np.testing.assert_allclose(binned[[0, 1, 20, 21, 50, 51, 100]], [0, 4, 4, 2, 2, 1, 1])
    # The size of a page is not known: a step has its most to its end.
    assert cut.kv_pages[busy].tolist() == [4, 9, 9, 9]


def test_pages_go_with_the_rows(synthetic: ModuleType) -> None:
    """The most is before the first two end, 20 passes of four rows: 5 pages grew until then."""
    cut = stretches(one_step(synthetic, page_tokens=16, kv_pages=11))
    busy = cut.duration_ps > 0
    a, b, c = 80 / 16, 60 / 16, 50 / 16  # what grew in each stretch
    expected = [4, 11 - a / 2, 11 - 6 + b / 2, 11 - 6 + b - 5 + c / 2]
    np.testing.assert_allclose(cut.kv_pages[busy], expected)


@pytest.mark.parametrize("policy", ["vllm", "orca"])
def test_rows_run_from_their_first_token_to_their_end(policy: str) -> None:
    """Of a policy that neither pauses nor suspends rows that decode."""
    path = Path(__file__).parents[2] / "traces/vidur-arxiv-summarization.jsonl.gz"
    record = simulate(
        SimJob(
            trace=str(path), policy=policy, model="llama-3.1-8b", gpu="a100-80g", gpus=2, limit=80
        )
    )
    rows = record.rows
    assert rows["suspensions"].sum() + rows["preemptions"].sum() == 0
    ran = (rows["end_ps"] - rows["first_token_ps"]).sum()
    start, end = metrics.window_ps(record)
    assert metrics.mean_running(record) == pytest.approx(ran / (end - start))
    assert series.running_series(record, 30).sum(axis=0).mean() == pytest.approx(
        metrics.mean_running(record)
    )
    engines = len(record.engines)
    kv = series.kv_series(record, 30).mean() * engines
    total = sum(int(e["hbm_pages_total"]) for e in record.engines)
    assert kv / total == pytest.approx(metrics.kv_mean_fraction(record))
