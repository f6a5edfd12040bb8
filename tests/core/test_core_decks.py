"""Planned and matched lanes against naive lists."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.policy.arrangement import Arrangement
from batchgen.runtime.engine.deck import FRONT, REAR, Deck, MatchLane
from batchgen.sequence import Status

WAITING, GONE = int(Status.WAITING), int(Status.DONE)
NUM_ROWS = 40


def scrambled(rows: list[int], ended: list[int]) -> Arrangement:
    return Arrangement(order=sorted(rows, key=lambda row: (row * 7 % 11, row)))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("offprbx"), st.integers(0, 99)), max_size=60))
def test_a_deck_gives_every_waiting_row_once(steps: list[tuple[str, int]]) -> None:
    """Rows come, return to the front, are dealt from both ends, are taken back, and die."""
    status = array("b", [0] * NUM_ROWS)
    deck, inside, coming = Deck(status, scrambled), list[int](), iter(range(NUM_ROWS))
    out: list[int] = []
    for kind, number in steps:
        if kind == "o":
            for row in [row for _, row in zip(range(number % 4), coming, strict=False)]:
                status[row] = WAITING
                deck.push(row)
                inside.append(row)
            deck.arrange()
        elif kind == "f" and out:
            row = out.pop()
            status[row] = WAITING
            deck.push_front(row)
            inside.append(row)
        elif kind in "pr":
            deck.side = FRONT if kind == "p" else REAR
            row = deck.peek()
            assert (row >= 0) == bool(inside)
            if row >= 0:
                deck.pop()
                inside.remove(row)
                status[row] = int(Status.PREFILL)
                out.append(row)
        elif kind == "b":
            row = deck.take_back()
            assert (row >= 0) == bool(inside)
            if row >= 0:
                inside.remove(row)
                status[row] = 0
        elif kind == "x" and inside:
            status[inside.pop(number % len(inside))] = GONE
        assert sorted(deck.rows()) == sorted(inside)
    assert sorted(deck.drain()) == sorted(inside)
    assert deck.peek() == -1


def test_both_ends_are_those_of_the_plan() -> None:
    status = array("b", [WAITING] * 5)
    deck = Deck(status, lambda rows, _: Arrangement(order=[3, 1, 4, 0, 2]))
    for row in range(5):
        deck.push(row)
    deck.arrange()
    assert deck.ends() == (3, 2)
    deck.side = REAR
    assert deck.peek() == 2
    deck.pop()
    deck.side = FRONT
    assert deck.peek() == 3
    status[0] = GONE
    assert deck.ends() == (3, 4)


def test_a_plan_follows_when_all_awaited_rows_have_ended() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def arrange(rows: list[int], ended: list[int]) -> Arrangement:
        seen.append((list(rows), list(ended)))
        return Arrangement(order=rows, awaited=0 if ended else 2)

    status = array("b", [WAITING] * 4)
    deck = Deck(status, arrange)
    for row in range(4):
        deck.push(row)
    deck.awaited.update(deck.arrange())
    assert deck.awaited == {0, 1}
    assert not deck.has_ended(3, well=True)
    assert not deck.has_ended(0, well=True)
    assert deck.has_ended(1, well=False)
    deck.arrange(always=True)
    assert seen[-1] == ([0, 1, 2, 3], [0])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 12))
def test_the_longest_match_is_first(hits: list[int], most: int) -> None:
    lane = MatchLane(array("b", [WAITING] * len(hits)), most, hits.__getitem__)
    for row in range(len(hits)):
        lane.push(row)
    left = list(range(len(hits)))
    while left:
        wanted = max(left, key=lambda row: (hits[row], -row)) if len(left) <= most else left[0]
        assert lane.peek() == wanted
        lane.pop()
        left.remove(wanted)
    assert lane.peek() == -1
