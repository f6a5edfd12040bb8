"""Sequence bodies: what they yield is obeyed; generators may be dropped and made anew."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from core_cases import NAMES, Case, Row, build, products, random_case, run, swaps
from core_invariants import Invariants

from batchgen import actions as act
from batchgen.check.verify import difference
from batchgen.coroutine import (
    DECODE,
    Body,
    Decode,
    End,
    Extend,
    Outcome,
    SequenceView,
    Wait,
    default_body,
)
from batchgen.log import Entry
from batchgen.runtime.core import Runtime
from batchgen.sequence import Status
from batchgen.step import Step

ROWS = tuple(Row(prompt=5 + index, budget=20, output=10 + index % 5) for index in range(12))


def many(kinds: tuple[str, ...] = (), count: int = 60) -> list[Case]:
    """Cases of any composition without stages of their own."""
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        case = random_case(rng, rng.choice(swaps() if seed % 2 else products()), kinds=kinds)
        rows = tuple(replace(row, stages=()) for row in case.rows)
        found.append(replace(case, rows=rows))
    return found


def test_the_default_body_costs_no_decision() -> None:
    """With it as a generator the same rows end at the same times."""
    for case in many(kinds=("lost", "back", "cancel")):
        plain, kept = run(case), run(case, bodies=default_body)
        assert plain.times() == kept.times()
        assert plain.columns() == kept.columns()
        assert kept.runtime.bodies is not None
        assert kept.runtime.bodies.live() == []


def test_generators_dropped_at_random_change_nothing() -> None:
    for seed, case in enumerate(many(kinds=("lost", "back", "cancel"))):
        staged = tuple(
            replace(row, stages=((3, 4, 0), (2, 5, 1000))) if index % 2 else row
            for index, row in enumerate(case.rows)
        )
        case = replace(case, rows=staged)
        chance = random.Random(seed)

        def drop_some(runtime: Runtime, entry: Entry, chance: random.Random = chance) -> None:
            assert runtime.bodies is not None
            for row in runtime.bodies.live():
                if chance.random() < 0.3:
                    runtime.bodies.drop(row)

        bodies = case.bodies() or default_body
        assert run(case, bodies=bodies).log == run(case, bodies=bodies, checker=drop_some).log


def test_stages_go_on_with_the_same_kv() -> None:
    """A follow-up prefills its own tokens and the newest one, nothing else."""
    rows = (Row(prompt=12, budget=9, output=9, stages=((7, 5, 0), (3, 4, 50_000))),)
    for depth in (1, 2):
        outcome = run(Case(preset="vllm", rows=rows, hbm_pages=100, depth=depth))
        chunks = [chunk for _, _, chunks, _ in outcome.passes()[0] for chunk in chunks]
        assert chunks == [(0, 0, 12, True), (0, 20, 8, True), (0, 32, 4, True)]
        assert outcome.table.recomputed[0] == 0
        assert outcome.table.stage[0] == 2
        assert outcome.table.produced[0] == 18
        assert outcome.reasons == {0: "length"}


def test_a_wait_is_as_long_as_it_says() -> None:
    waits = {}
    for wait_ps in (1, 200_000, 3_000_000):
        rows = (Row(prompt=12, budget=9, output=9, stages=((7, 5, wait_ps),)),)
        outcome = run(Case(preset="vllm", rows=rows, hbm_pages=100))
        waits[wait_ps] = outcome.times()[1][0]
    assert waits[200_000] - waits[1] == 200_000 - 1
    assert waits[3_000_000] - waits[1] == 3_000_000 - 1


def ends_after_prompt(sequence: SequenceView) -> Body:
    """Even rows want their prompt only, odd rows decode to the end."""
    outcome = yield DECODE
    while outcome is not Outcome.FINISHED:
        if outcome is Outcome.PROMPT_DONE and sequence.row % 2 == 0:
            return
        outcome = yield DECODE


@pytest.mark.parametrize("reference", [False, True])
def test_a_body_that_returns_ends_its_row(reference: bool) -> None:
    for case in many():
        outcome = run(case, bodies=ends_after_prompt, checker=Invariants(case), reference=reference)
        for index, row in enumerate(case.rows):
            reason = outcome.reasons[index]
            if index % 2 == 0 and reason not in ("capacity", "stop", "length"):
                assert reason == "body"
                assert outcome.table.status[index] == Status.DONE
                assert outcome.table.produced[index] < row.output
            elif index % 2 == 0 and reason != "capacity":
                # It ended before its body's word could reach it: no step is called off for it.
                assert row.output <= 1 + (case.depth + 1) * case.boundary
            else:
                assert reason in ("stop", "length", "capacity")


def test_bodies_that_want_nothing_end_at_once() -> None:
    def nothing(sequence: SequenceView) -> Body:
        return
        yield DECODE

    case = Case(preset="vllm", rows=(Row(prompt=30, budget=9, output=9),) * 3)
    assert run(case, bodies=nothing, checker=Invariants(case)).reasons == dict.fromkeys(
        range(3), "body"
    )


BAD: dict[str, tuple[Any, str]] = {
    "raises": (None, "its body raised KeyError: 'gone'"),
    "extends early": (Extend(3, 3), "yielded Extend(tokens=3, budget=3) after PROMPT_DONE"),
    "is no request": (17, "yielded 17 after PROMPT_DONE; it may yield Decode, Wait, End"),
    "waits for ever": (Wait(1e9), "a wait is 0 to 1e6 seconds"),
    "waits backwards": (Wait(-1), "a wait is 0 to 1e6 seconds"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_bad_body_fails_its_row_by_name_and_no_other(name: str, depth: int) -> None:
    request, text = BAD[name]

    def bad(sequence: SequenceView) -> Body:
        outcome = yield DECODE
        if sequence.row == 3:
            if request is None:
                raise KeyError("gone")
            yield request
        while outcome is not Outcome.FINISHED:
            outcome = yield DECODE

    case = Case(preset="vllm", rows=ROWS, depth=depth)
    outcome = run(case, bodies=bad, checker=Invariants(case))
    assert outcome.reasons[3] == "body"
    assert text in outcome.walker.why[3]
    others = [reason for row, reason in outcome.reasons.items() if row != 3]
    assert set(others) == {"stop"}


def test_a_follow_up_beyond_the_context_fails_by_name() -> None:
    def greedy(sequence: SequenceView) -> Body:
        outcome = yield DECODE
        while True:
            outcome = yield Extend(90_000, 20_000) if outcome is Outcome.FINISHED else DECODE

    case = Case(preset="vllm", rows=ROWS[:2])
    outcome = run(case, bodies=greedy, checker=Invariants(case))
    assert outcome.reasons == {0: "body", 1: "body"}
    assert "the model takes 100000" in outcome.walker.why[0]


def test_bodies_live_only_while_rows_are_at_work() -> None:
    case = Case(preset="vllm", rows=(Row(prompt=5, budget=5, output=5),) * 20, seqs=3)
    most = 0

    def count(runtime: Runtime, entry: Entry) -> None:
        nonlocal most
        assert runtime.bodies is not None
        most = max(most, len(runtime.bodies.live()))

    run(case, bodies=default_body, checker=count)
    assert 1 <= most <= 4


def test_a_sleeping_row_can_be_cancelled() -> None:
    rows = (Row(prompt=12, budget=9, output=9, stages=((7, 5, 3_000_000),)),)
    case = Case(preset="vllm", rows=rows, hbm_pages=100, troubles=(("cancel", 900_000, 0, 0),))
    outcome = build(case, checker=Invariants(case))
    outcome.walker.run()
    assert outcome.reasons == {0: "cancelled"}


def test_what_a_body_may_yield_is_exported() -> None:
    assert {Decode, Extend, Wait, End} == {type(DECODE), Extend, Wait, type(End())}


def naps(sequence: SequenceView) -> Body:
    """Most rows sleep when their prompt is complete, as often as it is; some then go on early."""
    outcome = yield DECODE
    while True:
        if outcome is Outcome.PROMPT_DONE and sequence.row % 5:
            outcome = yield Wait(1e-7 * (sequence.row % 3))  # many wake at once
        elif outcome is Outcome.WOKEN and sequence.row % 5 == 4 and not sequence.stage:
            outcome = yield Extend(3, 4)
        elif outcome is Outcome.FINISHED:
            return
        else:
            outcome = yield DECODE


@pytest.mark.parametrize("half", [0, 1])
def test_rows_that_sleep_after_their_prompt_wake(half: int) -> None:
    """Whatever takes their place meanwhile; a step's length changes nothing."""
    for index, case in enumerate(many(kinds=("lost", "back", "cancel"), count=120)):
        if index % 2 != half:
            continue
        staged = tuple(replace(row, stages=((3, 4, 0),)) for row in case.rows)
        case = replace(case, rows=staged)
        one = run(case, bodies=naps, checker=Invariants(case), reference=True)
        assert set(one.reasons.values()) <= {"stop", "length", "capacity", "cancelled", "no_device"}
        other = run(case, bodies=naps)
        assert not difference(one, other), (index, difference(one, other))


def sleeps_twice(sequence: SequenceView) -> Body:
    """Sleeps when its prompt is complete, and again when its generation has ended."""
    outcome = yield DECODE
    while True:
        if outcome is Outcome.PROMPT_DONE or (outcome is Outcome.FINISHED and not sequence.stage):
            outcome = yield Wait(1e-7)
        elif outcome is Outcome.WOKEN and sequence.produced_tokens >= 2 and not sequence.stage:
            outcome = yield Extend(4, 2)
        elif outcome is Outcome.FINISHED:
            return
        else:
            outcome = yield DECODE


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("depth", [1, 2])
def test_kv_that_is_computed_again_was_released(preset: str, depth: int) -> None:
    """Also where a generation ends in the very pass after which its row was to sleep."""
    row = Row(prompt=9, budget=2, output=2, stages=((4, 2, 0),))
    case = Case(preset=preset, rows=(row, row, row), hbm_pages=100, host_pages=100, depth=depth)
    outcome = run(case, bodies=sleeps_twice, checker=Invariants(case))
    assert set(outcome.reasons.values()) <= {"stop", "length"}
    held: dict[int, int] = {}  # row -> tokens with KV at the backend
    for entry in outcome.entries:
        for action in entry.actions:
            if isinstance(action, act.Release) and action.pool == "hbm":
                for one in action.rows:
                    held.pop(one, None)
            elif isinstance(action, Step):
                for one, start, size, _ in action.chunks:
                    assert start > 0 or one not in held
                    held[one] = start + size * action.n


def naps_at_the_end(sequence: SequenceView) -> Body:
    """Sleeps when its generation has ended, and ends when it wakes; every third row goes on."""
    outcome = yield DECODE
    while True:
        if outcome is Outcome.FINISHED:
            outcome = yield Wait(4e-6 if sequence.stage == 0 else 1e-6)
        elif outcome is Outcome.WOKEN:
            if sequence.stage or sequence.row % 3:
                return
            outcome = yield Extend(4, 2)
        else:
            outcome = yield DECODE


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("trouble", [(), (("lost", 2_000_000, 0, 0), ("back", 2_500_000, 0, 0))])
def test_only_tokens_that_are_computed_again_are_counted(
    preset: str, depth: int, trouble: Any
) -> None:
    """Not those of a row that ends when it wakes, whether its KV was there or had been lost."""
    rows = tuple(
        Row(prompt=9, budget=12, output=12 - index % 4, stages=((4, 2, 0),)) for index in range(12)
    )
    for pages in (14, 24, 100):
        case = Case(preset=preset, rows=rows, hbm_pages=pages, host_pages=40, depth=depth)
        case = replace(case, boundary=4, troubles=trouble)
        outcome = run(case, bodies=naps_at_the_end, checker=Invariants(case))
        begun = Counter[int]()
        for passes in outcome.passes():
            for _, _, chunks, _ in passes:
                begun.update(chunk[0] for chunk in chunks if chunk[1] == 0)
        once = [row for row in range(len(rows)) if begun[row] <= 1]
        assert once
        assert [row for row in once if outcome.table.recomputed[row]] == []
        again = [row for row in range(len(rows)) if begun[row] > 1]
        assert [row for row in again if not outcome.table.recomputed[row]] == []
