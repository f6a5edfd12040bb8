"""The states of a row in docs/coroutine-model.md: what the runtime does, no more, no less."""

from __future__ import annotations

import random
import re
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from core_cases import SPAN_PS, Case, random_case, run
from core_steady import steady_composition

import batchgen
from batchgen.check import case as cases
from batchgen.check.loads import Composition
from batchgen.coroutine import DECODE, Body, BodyFactory, Extend, Outcome, SequenceView, Wait
from batchgen.sequence import Status, Table

PAGE = Path(__file__).parents[2] / "docs" / "coroutine-model.md"
Move = tuple[str, str]

SEEDS = (
    3817, 2706, 1110, 1063, 297, 223, 197, 195, 167, 78, 61, 54, 16, 13, 9, 5, 4, 3, 1,
)  # fmt: skip
LOST_ON_THE_WAY = (33, 63, 139)
LOST_WITH_FOLLOW_UPS = (37,)
RARE = (9, 667, 1493, 1793)
"""Cases that make every documented move. If a change of the random cases takes one away, others are
looked for, which is slow: write down what the test then prints. LOST_ON_THE_WAY: of `leaving`,
LOST_WITH_FOLLOW_UPS: with bodies that say all they have. RARE: of `batchgen` as it is, so that new
parts and presets do not take their moves away."""
MOST = 3000


def documented() -> set[Move]:
    """(from, to) of the page's table: names in its first column, and from the third one on."""
    table = (
        PAGE.read_text(encoding="utf-8").split("<!-- states -->")[1].split("<!-- /states -->")[0]
    )
    found: set[Move] = set()
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            (name,) = re.findall(r"`([A-Z]+)`", cells[0])
            found |= {(name, to) for to in re.findall(r"`([A-Z]+)`", " ".join(cells[2:]))}
    return found


class Watched(array):  # type: ignore[type-arg]
    """The status column; it notes every move."""

    moves: set[Move]

    def __setitem__(self, row, value):  # type: ignore[no-untyped-def]
        before = self[row]
        array.__setitem__(self, row, value)
        if before != value:
            self.moves.add((Status(before).name, Status(value).name))


def case_of(seed: int, composition: Composition | None = None) -> tuple[Case, BodyFactory]:
    """A random case with bodies that want much, of any composition unless one is given; every
    second one has troubles enough for all."""
    rng = random.Random(seed)
    case = random_case(rng, composition or steady_composition(seed))
    if seed % 2:
        kinds = ("lost", "back", "cancel") if seed % 4 == 1 else ("pool_short", "cancel")
        more = tuple(
            (rng.choice(kinds), rng.randint(0, SPAN_PS), rng.randint(0, 63), rng.randint(0, 63))
            for _ in range(8)
        )
        case = replace(
            case,
            troubles=case.troubles + more,
            host_pages=case.hbm_pages,
            bad_copies=rng.choice((0, 1, 2)),
        )

    def body(sequence: SequenceView) -> Body:
        dice = random.Random(f"{seed}.{sequence.row}")
        stages = case.rows[sequence.row].stages
        outcome = yield DECODE
        while True:
            chance, wait = dice.random(), Wait(dice.choice((0, 30_000, 400_000)) / 1e12)
            more = sequence.stage < len(stages)
            if outcome is Outcome.FINISHED and more and chance < 0.5:
                outcome = yield Extend(*stages[sequence.stage][:2])
            elif outcome in (Outcome.FINISHED, Outcome.PROMPT_DONE) and chance < 0.7:
                outcome = yield wait
            elif outcome is Outcome.FINISHED or chance > 0.95:
                return
            else:
                outcome = yield DECODE

    return case, body


def leaving(seed: int) -> Case:
    """Rows that stream to a host leave engines that are noticed, and lost soon."""
    rng = random.Random(seed)
    kinds = ("lost", "back", "notice")
    case = random_case(rng, ("batchgen", {}), kinds=kinds, most_rows=30)
    more = tuple(
        (
            rng.choice(("lost", "notice", "notice", "back")),
            rng.randint(0, SPAN_PS),
            rng.randint(0, 63),
            rng.randint(0, 63),
        )
        for _ in range(6)
    )
    troubles = case.troubles + more
    return replace(case, troubles=troubles, host_pages=10_000, copy_ps=rng.choice((10, 170)))


def talkative(case: Case) -> BodyFactory:
    """Rows of a case go through all their stages."""

    def body(sequence: SequenceView) -> Body:
        stages = case.rows[sequence.row].stages
        outcome = yield DECODE
        while outcome is not Outcome.FINISHED or sequence.stage < len(stages):
            if outcome is Outcome.FINISHED:
                outcome = yield Extend(*stages[sequence.stage][:2])
            else:
                outcome = yield DECODE

    return body


def moves_of(case: Case, body: BodyFactory | None, monkeypatch: pytest.MonkeyPatch) -> set[Move]:
    """All moves of one run."""
    moves: set[Move] = set()

    class WatchedTable(Table):
        def __init__(self, *args, **options) -> None:  # type: ignore[no-untyped-def]
            super().__init__(*args, **options)
            self.v_status = Watched("b", self.v_status)
            self.v_status.moves = moves
            self.status = np.frombuffer(self.v_status, dtype=np.int8)

    monkeypatch.setattr(cases, "Table", WatchedTable)
    run(case) if body is None else run(case, bodies=body)
    return moves


@pytest.mark.skipif(batchgen.is_compiled(), reason="the table is watched from a subclass")
def test_rows_move_as_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    table, seen, helped = documented(), set[Move](), []
    for seed in LOST_ON_THE_WAY:
        seen |= moves_of(leaving(seed), None, monkeypatch)
    for seed in LOST_WITH_FOLLOW_UPS:
        seen |= moves_of(leaving(seed), talkative(leaving(seed)), monkeypatch)
    assert seen <= table, f"not in {PAGE.name}: {sorted(seen - table)}"
    for seed in RARE:
        seen |= moves_of(*case_of(seed, ("batchgen", {})), monkeypatch)
    for seed in (*SEEDS, *range(MOST)):
        if seed not in SEEDS and seen >= table:
            break
        new = moves_of(*case_of(seed), monkeypatch) - seen
        assert new <= table, f"seed {seed}: not in {PAGE.name}: {sorted(new - table)}"
        seen |= new
        helped += [seed] if new else []
    assert seen == table, f"in {PAGE.name}, but nobody does it: {sorted(table - seen)}"
    if helped[-1] not in SEEDS:
        print(f"SEEDS = {tuple(helped)}")


@pytest.mark.slow
@pytest.mark.skipif(batchgen.is_compiled(), reason="the table is watched from a subclass")
def test_no_case_does_more(monkeypatch: pytest.MonkeyPatch) -> None:
    table = documented()
    for seed in range(20_000, 24_000):
        more = moves_of(*case_of(seed), monkeypatch) - table
        assert not more, f"seed {seed}: not in {PAGE.name}: {sorted(more)}"


def test_every_state_is_in_the_table() -> None:
    names = {name for move in documented() for name in move}
    assert names == {status.name for status in Status}
