"""Faults that the core once had, one test for each: rows that are to end or to sleep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_cases import Case, Row, run
from core_invariants import Invariants

from batchgen import actions as act
from batchgen import events as ev
from batchgen.coroutine import DECODE, Body, Extend, SequenceView, Wait
from batchgen.coroutine import Outcome as Told

MOVED = Case(
    preset="vllm",
    rows=tuple(Row(prompt=5, budget=100, output=100) for _ in range(6)),
    engines=2,
    hbm_pages=2000,
    troubles=(("notice", 50_000, 0, 0),),
    advised=False,
)


def ends_when_lost(sequence: SequenceView) -> Body:
    outcome = yield DECODE
    while outcome not in (Told.LOST, Told.FINISHED):
        outcome = yield DECODE


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("how", ["not copied", "copies fail"])
def test_a_body_may_end_where_its_kv_is_given_up(how: str, depth: int) -> None:
    """It is told once its row has another place, or none."""
    if how == "not copied":
        case = replace(MOVED, depth=depth, overrides={"recovery.part": "recompute"})
    else:
        case = replace(MOVED, depth=depth, bad_copies=1)
    outcome = run(case, bodies=ends_when_lost, checker=Invariants(case))
    assert sorted(outcome.reasons.values()) == ["body"] * 3 + ["length"] * 3


def test_a_cancelled_row_ends_though_its_copies_fail() -> None:
    """It is in a copy when it is cancelled, and looks for a new engine when that is given up."""
    case = replace(MOVED, bad_copies=1, copy_ps=3000)
    at = next(entry.t for entry in run(case).entries if isinstance(entry.event, ev.CopiesFailed))
    case = replace(case, troubles=(*case.troubles, ("cancel", at - 1, 0, 0)))
    outcome = run(case, checker=Invariants(case))
    assert outcome.reasons[0] == "cancelled"


def test_a_row_that_is_to_sleep_can_be_cancelled_before_it_does() -> None:
    """Its body wants to sleep, but a copy holds it."""

    def sleeper(sequence: SequenceView) -> Body:
        outcome = yield DECODE
        while outcome is not Told.FINISHED:
            outcome = yield Wait(1e-6) if outcome is Told.PROMPT_DONE else DECODE

    case = replace(MOVED, engines=2, roles=("prefill", "decode"), troubles=(), copy_ps=3000)
    copy = next(
        entry.t
        for entry in run(case, bodies=sleeper).entries
        if any(isinstance(one, act.Copy) for one in entry.actions)
    )
    case = replace(case, troubles=(("cancel", copy + 1, 0, 0),))
    outcome = run(case, bodies=sleeper, checker=Invariants(case))
    assert outcome.reasons[0] == "cancelled"
    wakes = [one for entry in outcome.entries for one in entry.actions if isinstance(one, act.Wake)]
    assert 0 not in {wake.row for wake in wakes}


@pytest.mark.parametrize("output", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_a_body_wants_at_the_end_takes_the_place_of_a_sleep(depth: int, output: int) -> None:
    """It wanted to sleep, but its generation ended before it did: no other wait is made for it."""
    asked: list[str] = []

    def hasty(sequence: SequenceView) -> Body:
        outcome = yield DECODE
        while True:
            asked.append(outcome.name)
            if outcome is Told.PROMPT_DONE and not sequence.stage:
                outcome = yield Wait(1e-6)
            elif outcome is Told.FINISHED and not sequence.stage:
                outcome = yield Extend(3, 4)
            elif outcome is Told.FINISHED:
                return
            else:
                outcome = yield DECODE

    row = Row(prompt=5, budget=9, output=output, stages=((3, 4, 0),))
    case = Case(preset="vllm", rows=(row,), depth=depth)
    outcome = run(case, bodies=hasty, checker=Invariants(case))
    assert outcome.reasons == {0: "length"}
    slept = ["PROMPT_DONE", "WOKEN", "FINISHED", "PROMPT_DONE", "FINISHED"]
    ended = [name for name in slept if name != "WOKEN"]
    first_ends_it = ["FINISHED", "PROMPT_DONE", "FINISHED"]
    assert asked in (slept, ended, first_ends_it)
