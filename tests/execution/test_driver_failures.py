"""Rows whose logits are not finite end with a code; every other row ends as if alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exec_cases import PRESETS, STOPS, Case, answer, check_answer, cost_of, drive_watched, prompt
from exec_cases import run as run_case

from batchgen import events as ev
from batchgen.errors import IllegalTransition
from batchgen.exec.clock import ModelClock
from batchgen.exec.driver import Driver
from batchgen.exec.init import init_model
from batchgen.exec.prepare import prepare
from batchgen.exec.worker import Worker

CODE = "non_finite_logits"
ROWS = tuple((number, 24) for number in range(8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("failures") / "m", "qwen3", "tiny", seed=3)


def spoil(row: int, produced: int) -> Callable[[Worker], None]:
    """Make the logits of one row NaN when it has produced so many tokens."""

    def tweak(worker: Worker) -> None:
        append = worker._append

        def spoiled(rows: list[int], logits: torch.Tensor) -> object:
            if row in rows and len(worker.tokens(row)) == produced:
                logits = logits.clone()
                logits[rows.index(row)] = torch.nan
            return append(rows, logits)

        worker._append = spoiled

    return tweak


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize(("produced", "scarce"), [(0, True), (7, True), (7, False)])
def test_a_failed_row_stops_nobody(
    policy: str, produced: int, scarce: bool, model: Path, tmp_path: Path
) -> None:
    case = Case(policy=policy, rows=ROWS, host_pages=100, hbm_pages=24 if scarce else 200)
    bad = next(n for n in range(8) if len(answer(model, n, STOPS)) > 10)
    outcome = run_case(case, model, tmp_path, tweak=spoil(bad, produced))
    for row, (number, budget) in enumerate(ROWS):
        check_answer(model, number, outcome.tokens[row], budget)
        if row == bad:
            assert outcome.reasons[row] == CODE
            assert len(outcome.tokens[row]) == produced
        else:
            assert outcome.reasons[row] in ("stop", "length")
    for leased, used, host_leased, host_used, _ in outcome.held:
        assert used <= leased
        assert host_used <= host_leased


def test_a_failed_row_cuts_its_step(model: Path, tmp_path: Path) -> None:
    case = Case(policy="batchgen", rows=ROWS, host_pages=100, hbm_pages=200, boundary=16)
    case = replace(case, ignore_eos=True)
    outcome = run_case(case, model, tmp_path, tweak=spoil(2, 5))
    at = next(i for i, (event, _, _) in enumerate(outcome.entries) if type(event) is ev.RowFailed)
    done = next(e for e, _, _ in outcome.entries[at:] if type(e) is ev.Landed)
    assert done.ended_by == "cut"


@pytest.mark.parametrize("policy", PRESETS)
def test_pages_of_a_failed_row_poison_nobody(policy: str, model: Path, tmp_path: Path) -> None:
    """A row that leaves NaN in its pages; rows that come later take the same pages."""
    used = {
        token for number, _ in ROWS for token in (*prompt(number), *answer(model, number, STOPS))
    }
    poison = next(token for token in range(264) if token not in used)
    case = Case(policy=policy, rows=ROWS, hbm_pages=14, host_pages=100, seqs=2)
    prepared = prepare(case.job(model, tmp_path))
    worker = prepared.worker
    worker.model.embedding[poison] = torch.nan
    worker.forget_row(0)
    bad_prompt = [*prompt(0)[:-1], poison]
    stops = prepared.tokenizer.eos_token_ids
    worker.add_row(0, bad_prompt, max_output=24, stop_ids=stops)
    outcome = drive_watched(prepared, cost=cost_of(model))
    assert outcome.reasons[0] == CODE
    for row, (number, budget) in list(enumerate(ROWS))[1:]:
        assert outcome.reasons[row] in ("stop", "length"), (row, outcome.reasons)
        check_answer(model, number, outcome.tokens[row], budget)


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_a_published_page_of_a_failed_row_is_clean_when_it_is_free(
    compiled: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index holds it longer than the row, and another row may hold it longer than both."""
    monkeypatch.setenv("BATCHGEN_COMPILED", compiled)
    worker = Worker(model, page_tokens=4, hbm_pages=16, host_pages=0, threads=1)
    worker.model.embedding[7] = torch.nan
    ids = [1, 2, 3, 7, 5, 6, 1, 2, 3]
    worker.add_row(0, ids, max_output=4, stop_ids=frozenset())
    worker.publish(0, 0, [10, 11])
    assert worker.run_pass([], [(0, 0, 9, True)]).failed == ((0, CODE, ""),)
    storage = worker._hbm.storage
    worker.add_row(1, ids, max_output=4, stop_ids=frozenset())
    worker.adopt(1, [10])
    worker.forget_row(0)
    assert not storage.isfinite().all()
    worker.forget([10, 11])
    assert not storage.isfinite().all()  # row 1 has the first page still
    worker.forget_row(1)
    assert storage.isfinite().all()
    assert worker.pages_used("hbm") == 0


def test_copies_that_nobody_asks_about_hold_up_no_clock(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a simulated clock the clock says when copies are over; the copier may tell it later."""
    monkeypatch.setattr(Driver, "_collect_copies", lambda self, until_ps: None)
    case = Case(policy="batchgen", rows=ROWS, hbm_pages=16, host_pages=100)
    outcome = run_case(case, model, tmp_path)
    assert outcome.driver._copies
    for row, (number, budget) in enumerate(ROWS):
        check_answer(model, number, outcome.tokens[row], budget)


def test_all_rows_fail(model: Path, tmp_path: Path) -> None:
    def tweak(worker: Worker) -> None:
        worker.model.final_norm[:] = torch.nan

    for policy in PRESETS:
        outcome = run_case(Case(policy=policy, rows=ROWS), model, tmp_path, tweak=tweak)
        assert set(outcome.reasons.values()) == {CODE}


def test_silence_with_unfinished_rows_is_an_error(model: Path, tmp_path: Path) -> None:
    prepared = prepare(Case(policy="vllm", rows=ROWS).job(model, tmp_path))

    class Deaf:
        """A runtime that never asks for anything."""

        table = prepared.table
        unfinished = 1
        plan = prepared.plan
        bodies = None

        def on(self, event: ev.Event, now: int) -> list[object]:
            return []

    driver = Driver(Deaf(), prepared.worker, ModelClock(cost_of(model)))
    driver.schedule(ev.Arrived([0]), 0)
    with pytest.raises(IllegalTransition, match="1 rows are left and nothing happens"):
        driver.run()
