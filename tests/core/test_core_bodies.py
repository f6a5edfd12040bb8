"""Sequence bodies: generators, dropped and made anew at random, and bodies of one's own."""

from __future__ import annotations

import random

import numpy as np
from core_cases import Case, Row, build, cases, run
from core_invariants import Invariants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.coroutine import Body, Outcome, Stage, advance, default_body, wanted
from batchgen.log import Entry
from batchgen.runtime.core import Runtime
from batchgen.sequence import Phase, Status, Table

TROUBLES = ("lost", "back", "notice", "cancel", "pool_short")
SETTINGS = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


@SETTINGS
@given(cases(kinds=TROUBLES), st.integers(0, 1000))
def test_generators_dropped_at_random_change_nothing(case: Case, seed: int) -> None:
    plain = run(case)
    kept = run(case, body_factory=default_body)
    chance = random.Random(seed)

    def drop_some(runtime: Runtime, entry: Entry) -> None:
        for row in list(runtime.bodies._live):
            if chance.random() < 0.3:
                runtime.bodies.drop(row)

    dropped = run(case, body_factory=default_body, checker=drop_some)
    assert plain.log == kept.log == dropped.log
    assert plain.columns() == kept.columns() == dropped.columns()
    assert kept.simulation.runtime.bodies._live == {}


def test_bodies_live_only_while_rows_are_at_work() -> None:
    case = Case(preset="vllm", rows=(Row(prompt=5, budget=5, output=5),) * 20, seqs=3)
    most = 0

    def count(runtime: Runtime, entry: Entry) -> None:
        nonlocal most
        most = max(most, len(runtime.bodies._live))

    run(case, body_factory=default_body, checker=count)
    assert 1 <= most <= 4


@given(
    st.lists(st.tuples(st.sampled_from(list(Phase)), st.sampled_from(list(Status))), min_size=1),
    st.sampled_from(list(Outcome)),
)
def test_advance_is_the_default_body_of_many_rows(
    states: list[tuple[Phase, Status]], outcome: Outcome
) -> None:
    table = Table([3] * len(states), [5] * len(states))
    for row, (phase, status) in enumerate(states):
        # What the runtime has written into the row when it resumes the body.
        written = {Outcome.PROMPT_DONE: Phase.DECODE, Outcome.LOST: Phase.PREFILL}
        table.phase[row] = written.get(outcome, phase)
        table.status[row] = Status.DONE if outcome is Outcome.FINISHED else min(status, 2)
    rows = np.arange(len(states))
    wants = []
    for row in rows.tolist():
        body = default_body(table, row)
        if next(body, None) is None:
            wants.append(Stage.END)
            continue
        try:
            wants.append(body.send(outcome))
        except StopIteration:
            wants.append(Stage.END)
    assert advance(table, rows, outcome).tolist() == wants
    assert [wanted(table, row) for row in rows.tolist()] == wants


def ends_after_prompt(table: Table, row: int) -> Body:
    """Even rows want their prompt only, odd rows decode to the end."""
    while (stage := wanted(table, row)) is not Stage.END:
        outcome = yield stage
        if outcome is Outcome.PROMPT_DONE and row % 2 == 0:
            return
        if outcome is Outcome.FINISHED:
            return


@SETTINGS
@given(cases(), st.booleans())
def test_a_body_that_returns_ends_its_row(case: Case, reference: bool) -> None:
    checker = Invariants(case)
    outcome = run(case, body_factory=ends_after_prompt, checker=checker, reference=reference)
    other = run(case, body_factory=ends_after_prompt, reference=not reference)
    assert outcome.everything() == other.everything()
    for index, row in enumerate(case.rows):
        reason = outcome.reasons[index]
        if index % 2 == 0 and reason != "capacity" and row.output > 1:
            assert reason == "body"
            assert outcome.table.status[index] == Status.DONE
            assert outcome.table.produced[index] < row.output
            assert outcome.times()[1][index] >= outcome.times()[0][index] >= 0
        else:
            assert reason in ("stop", "length", "capacity")


def test_a_body_that_wants_nothing_ends_at_once() -> None:
    def nothing(table: Table, row: int) -> Body:
        return
        yield Stage.END

    case = Case(preset="vllm", rows=(Row(prompt=30, budget=9, output=9),) * 3)
    outcome = build(case, body_factory=nothing, checker=Invariants(case))
    outcome.simulation.run()
    assert outcome.reasons == dict.fromkeys(range(3), "body")
