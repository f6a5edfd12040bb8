"""`Homes` against plain lists, and that it asks few engines when all suit."""

from __future__ import annotations

from typing import Any

from core_cases import Case, Row
from hypothesis import given
from hypothesis import strategies as st

from batchgen.runtime.cluster.homes import Homes
from batchgen.runtime.cluster.loads import Loads

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
