"""`Homes` against plain lists, and that it asks few engines when all suit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from core_cases import Case, Row, run
from hypothesis import given
from hypothesis import strategies as st

from batchgen.actions import Place
from batchgen.runtime.cluster.homes import Homes
from batchgen.runtime.cluster.loads import Loads
from batchgen.step import Step

ENGINES = 9
Change = tuple[int, int, int]


def engines(count: int) -> list[Any]:
    case = Case(preset="vllm", rows=(Row(prompt=1, budget=1, output=1),), engines=count)
    return case.runtime().cluster.engines


EVERY = engines(ENGINES)


def homes(some: list[Any], suits: Any, loads: Loads, *, kept: bool) -> Homes:
    least = loads.takers if kept else None
    return Homes(some, suits, loads, least)


@given(
    members=st.sets(st.integers(0, ENGINES - 1), min_size=1),
    rounds=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, ENGINES - 1), st.integers(0, 2), st.integers(-3, 5))),
            st.sets(st.integers(0, ENGINES - 1)),
            st.integers(0, 50),
        ),
        max_size=8,
    ),
)
def test_it_chooses_what_a_list_would(
    members: set[int], rounds: list[tuple[list[Change], set[int], int]]
) -> None:
    every = EVERY
    some = [every[index] for index in sorted(members)]
    loads = Loads([3] * ENGINES)
    loads.takers.admit(some)
    for changes, out, number in rounds:
        for engine, rank, work in changes:
            loads.add(engine, rank, work)
        found = homes(some, lambda one, out=out: one.id not in out, loads, kept=True)
        plain = [one for one in some if one.id not in out]
        assert list(found) == plain
        assert len(found) == len(plain)
        assert bool(found) == bool(plain)
        assert [found[index] for index in range(len(plain))] == plain
        if not plain:
            continue
        assert found.least_loaded() is min(plain, key=lambda one: (loads.of(one.id), one.id))
        order = [some[(number + step) % len(some)] for step in range(len(some))]
        assert found.turn(number) is next(one for one in order if one in plain)
        few = found.within([every[index] for index in range(4)])
        assert list(few) == [one for one in every[:4] if one.id not in out]
        if few:
            assert few.least_loaded() is min(few, key=lambda one: (loads.of(one.id), one.id))


def test_a_thousand_engines_are_not_asked() -> None:
    every = engines(1000)
    loads = Loads([1] * 1000)
    loads.takers.admit(every)
    asked = 0

    def suits(one: Any) -> bool:
        nonlocal asked
        asked += 1
        return bool(one.id != 0)

    for number in range(500):
        found = homes(every, suits, loads, kept=True)
        assert found
        loads.add(found.least_loaded().id, 0, 1)
        found.turn(number)
    assert asked <= 500 * 6


def test_an_engine_that_comes_back_is_as_loaded_as_others_of_its_role() -> None:
    loads = Loads([2] * 6)
    loads.takers.admit(EVERY[:2])
    loads.decoders.admit(EVERY[2:6])
    for engine in range(2, 6):
        loads.add(engine, 0, 1000 + engine)
    loads.clear(4)
    loads.decoders.admit(EVERY[2:6])
    loads.level(4)
    assert loads.of(4) == 1002
    assert loads.of(0) == 0
    loads.add(1, 0, 70)
    loads.level(0)
    assert loads.of(0) == 70


@pytest.mark.parametrize("placement", ["round-robin", "least-work"])
def test_rows_that_come_one_by_one_are_spread_over_all_engines(placement: str) -> None:
    rows = tuple(Row(prompt=20, budget=4, output=4, arrival=4_000_000 * i) for i in range(80))
    case = Case(
        preset="vllm",
        rows=rows,
        engines=6,
        roles=("prefill", "prefill", *("decode",) * 4),
        overrides={"placement.part": placement},
    )
    outcome = run(case)
    places = Counter(
        action.engine
        for entry in outcome.entries
        for action in entry.actions
        if type(action) is Step and action.joined
        for _ in action.joined
    )
    assert {places[engine] for engine in range(2, 6)} == {20}
    firsts = Counter(
        action.engine
        for entry in outcome.entries
        for action in entry.actions
        if type(action) is Place
        for _ in action.rows
    )
    if placement == "round-robin":
        assert firsts[0] == firsts[1] == 40
