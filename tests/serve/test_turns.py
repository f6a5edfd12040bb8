"""Turns are fair: whoever waits gets the same share, and everybody ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchgen.serve.turns import Turns


def test_one_alone_and_none() -> None:
    turns = Turns(10.0)
    assert turns.next() is None
    turns.add("a")
    turns.over("a", 100.0, rows=1)
    assert turns.next() == "a"
    assert turns.next(["a"]) is None
    turns.remove("a")
    turns.remove("a")
    assert turns.next() is None


def test_without_slices_a_turn_lasts_to_the_end() -> None:
    turns = Turns(0.0)
    turns.add("a")
    assert turns.length_s("a") == float("inf")


def test_who_comes_later_does_not_wait_for_what_was_before() -> None:
    turns = Turns(10.0)
    turns.add("old")
    for _ in range(100):
        turns.over("old", 10.0, rows=1)
    turns.add("new")
    assert turns.next() == "old"  # both have had as much; the one that came first
    turns.over("old", 10.0, rows=1)
    order = []
    for _ in range(6):
        name = turns.next()
        assert name is not None
        order.append(name)
        turns.over(name, 10.0, rows=1)
    assert order == ["new", "old"] * 3


def test_a_turn_in_which_nothing_ended_doubles_the_next() -> None:
    turns = Turns(10.0)
    turns.add("a")
    for length in (10.0, 20.0, 40.0):
        assert turns.length_s("a") == length
        turns.over("a", length, rows=0)
    turns.over("a", 80.0, rows=1)
    assert turns.length_s("a") == 10.0


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.floats(0.1, 20.0), st.booleans()),
        min_size=20,
        max_size=200,
    )
)
def test_shares_never_differ_by_more_than_a_turn(events: list[tuple[str, float, bool]]) -> None:
    """Whenever, batches come and turns end: of two that wait, neither has had more than one longest
    turn more than the other since both were there."""
    turns, had = Turns(10.0), dict[str, float]()
    longest = 0.0
    for name, seconds, comes in events:
        if comes and name not in had:
            had[name] = min(had.values(), default=0.0)
            turns.add(name)
        chosen = turns.next()
        if chosen is None:
            continue
        assert had[chosen] == min(had.values())
        had[chosen] += seconds
        longest = max(longest, seconds)
        turns.over(chosen, seconds, rows=1)
        assert max(had.values()) - min(had.values()) <= longest + 1e-6
