"""The parts of preset `best` against counting by hand: who is dealt first, how prompts are paced,
where phases are, whose budget is a wish.
"""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from core_cases import Case, Row, random_case, run
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.memory.pool import GrowthHistogram
from batchgen.policy.arrangement import Arrangement, Waiting
from batchgen.policy.batching import Chunks, PacedChunks
from batchgen.policy.planned import Blend, HeavyFirst
from batchgen.policy.predictor import OwnLength
from batchgen.runtime.engine.deck import FRONT, REAR, Deck
from batchgen.runtime.engine.rank import Rank
from batchgen.sequence import Status, Table

WAITING, PREFILL = int(Status.WAITING), int(Status.PREFILL)

LONG = Row(prompt=4, budget=90, output=90)
SHORT = Row(prompt=24, budget=2, output=2)


def mixed(overrides: dict[str, str] | None = None, **fields: int) -> Case:
    """8 rows that read beside 60 that compute; 4 of the long ones fit at a time."""
    rows = tuple(LONG if at % 17 == 3 else SHORT for at in range(136))
    options = {"order.unit_rows": "1", "predictor.most_share": "1", "batching.least_tokens": "8"}
    sizes = {"hbm_pages": 110, "budget": 64, "seqs": 64, **fields}
    return Case(preset="best", rows=rows, overrides={**options, **(overrides or {})}, **sizes)


def first_passes(case: Case) -> dict[int, int]:
    """The pass in which each row is first seen, and the number of passes under -1; one engine."""
    (passes,) = run(case).passes()
    found = {-1: len(passes)}
    for number, (_, _, some, _) in enumerate(passes):
        for row, *_ in some:
            found.setdefault(row, number)
    return found


# -- the order ------------------------------------------------------------------------------------


def test_long_rows_start_first_and_none_starts_last() -> None:
    case = mixed()
    seen = first_passes(case)
    count = seen.pop(-1)
    order = sorted(seen, key=seen.__getitem__)
    longs = [row for row in seen if case.rows[row] is LONG]
    assert sorted(seen[row] for row in longs)[:4] == [0] * 4
    assert max(seen[row] for row in longs) < count - LONG.output
    assert case.rows[order[-1]] is SHORT


def test_a_reserve_of_everything_leaves_nothing_to_long_rows_but_their_turn() -> None:
    seen = first_passes(mixed({"order.reserve": "1"}))
    longs = [row for row in seen if row % 17 == 3]
    shorts = [row for row in seen if row >= 0 and row % 17 != 3]
    assert max(seen[row] for row in shorts) <= min(seen[row] for row in longs)


def test_where_prompts_have_phases_rows_keep_the_order_of_their_coming() -> None:
    table = Table([5, 9, 2, 7], [30, 1, 90, 4])
    rows = [2, 0, 3, 1]
    waiting = Waiting(
        table=table, rows=rows, ended=[], keys=lambda row: [], page_tokens=4, mixes=False
    )
    assert HeavyFirst().arrange(waiting).order == rows
    mixing = Waiting(table=table, rows=rows, ended=[], keys=lambda row: [], page_tokens=4)
    found = HeavyFirst().arrange(mixing)
    assert found.order == Blend().arrange(mixing).order != rows
    assert set(found.works) == set(rows)


def test_rows_that_are_short_against_what_is_left_are_paced() -> None:
    """All of them fit, so memory keeps none from the right end; yet chats wait for their turn while
    the long ones run, and rows that are all alike wait for nothing."""
    for share, spread in (("0.1", True), ("0", False)):
        seen = first_passes(
            mixed({"order.least_share": share}, hbm_pages=2000, seqs=200, budget=400)
        )
        count = seen.pop(-1)
        assert (max(seen.values()) > count / 2) == spread
    alike = mixed(hbm_pages=2000, seqs=200, budget=400)
    alike = replace(alike, rows=(LONG,) * 60)
    seen = first_passes(alike)
    del seen[-1]
    assert set(seen.values()) == {0}


# -- the pace of prompts --------------------------------------------------------------------------


def planned(works: dict[int, tuple[int, int]]) -> Deck:
    status = bytearray(len(works))
    deck = Deck(status, lambda rows, ended: Arrangement(order=sorted(rows), works=works))  # type: ignore[arg-type]
    for row in works:
        status[row] = WAITING
        deck.push(row)
    deck.arrange()
    return deck


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 999)), min_size=1, max_size=12),
    st.lists(st.sampled_from((FRONT, REAR, -1)), max_size=20),
)
def test_what_a_deck_has_left_is_the_sum_of_its_rows(
    some: list[tuple[int, int]], steps: list[int]
) -> None:
    """Rows are dealt from both ends, and the last one dealt comes back."""
    works = dict(enumerate(some))
    deck = planned(works)
    inside, out = list(works), list[int]()
    for side in steps:
        if side < 0 and out:
            inside.append(out.pop())
            deck.push_front(inside[-1])
        elif side >= 0 and inside:
            deck.side = side
            row = deck.peek()
            deck.pop()
            inside.remove(row)
            out.append(row)
        expected = tuple(sum(works[row][part] for row in inside) for part in (0, 1))
        assert deck.work() == expected


def a_rank(table: Table, deck: Deck | None, running: dict[int, int]) -> Rank:
    """A rank that decodes rows of so many known tokens, at decode clock 0."""
    rank = Rank(0, table, size=1000, page_tokens=4, lanes=[], page_keys=None)
    rank.lanes.append(deck)  # type: ignore[arg-type]
    rank.growth = GrowthHistogram(4)
    for row, known in running.items():
        table.v_offset[row] = known
        rank.running[row] = None
    return rank


def test_a_pass_holds_its_part_of_what_is_left_to_compute() -> None:
    """Two rows decode, each 10 of 20 tokens; two wait for 500 and 700 tokens and read 3000, 4000.
    Left to read: 2 x (10 x 30 + 50) + 7000; to compute: 20 + 1200; read now: 60."""
    table = Table([21, 21, 500, 700], [20, 20, 6, 6])
    rank = a_rank(
        table, planned({2: (500, 3000), 3: (700, 4000), 0: (0, 0), 1: (0, 0)}), {0: 30, 1: 30}
    )
    engine = SimpleNamespace(k=0, token_budget=8192)
    left = 1220 * 60 // 7700
    assert PacedChunks(PacedChunks.Config(least_tokens=1)).pace(engine, rank) == left - 2  # type: ignore[arg-type]
    least = PacedChunks(PacedChunks.Config(least_tokens=128))
    assert least.pace(engine, rank) == 126  # type: ignore[arg-type]
    # Admitting a row does not change it.
    deck = rank.lanes[0]
    assert isinstance(deck, Deck)
    before = rank.planned_work()
    deck.side = REAR
    row = deck.peek()
    deck.pop()
    rank.prefilling[row] = None
    assert rank.planned_work() == before


def test_without_a_plan_nothing_is_paced() -> None:
    table = Table([21], [20])
    rank = a_rank(table, None, {0: 30})
    engine = SimpleNamespace(k=0, token_budget=777)
    assert PacedChunks().pace(engine, rank) == 777  # type: ignore[arg-type]
    assert not Chunks().paces


def test_prompts_last_as_long_as_decodes() -> None:
    """Not paced they are over half-way, paced they last to the last quarter of the passes."""
    paced, not_paced = first_passes(mixed()), first_passes(mixed({"batching.least_tokens": "999"}))
    last = [
        max(at for row, at in seen.items() if row >= 0) / seen[-1] for seen in (paced, not_paced)
    ]
    assert last[0] > 0.75 > 0.6 > last[1]


@pytest.mark.parametrize("order", ["heavy-first", "blend", "depth-first"])
def test_steps_of_one_pass_and_long_ones_pace_alike(order: str) -> None:
    """Also where rows come late, and prompts are far longer than the pace."""
    rng = random.Random(order)
    for _ in range(25):
        case = random_case(rng, ("best", {"order.part": order, "batching.least_tokens": "2"}))
        long, short = run(case), run(case, reference=True)
        assert long.passes() == short.passes(), case


# -- phases, lengths ------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "mixes"), [(1, True), (2, False)])
def test_only_ranks_in_lockstep_have_phases(ranks: int, mixes: bool) -> None:
    """Some pass holds prompts and decodes."""
    (passes,) = run(mixed(ranks=ranks, host_pages=1000)).passes()
    kinds = {(bool(chunks), bool(decodes)) for _, decodes, chunks, _ in passes}
    assert ((True, True) in kinds) == mixes


def test_a_budget_that_many_have_is_a_cap() -> None:
    """Of 20 rows that come together 18 may produce 512, two something of their own; one more with
    512 comes later, and says as little."""
    table = Table([1] * 21, [512] * 18 + [700, 9000, 512])
    part = OwnLength(OwnLength.Config(most_share=0.05))
    state = part.new_state()
    part.on_arrival(table, list(range(20)), state)
    assert table.predicted.tolist() == [0] * 18 + [700, 9000, 0]
    part.on_arrival(table, [20], state)
    assert table.v_predicted[20] == 0
