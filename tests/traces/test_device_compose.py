"""Troubles that overlap: composition against an oracle that looks at every instant by itself."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from batchgen.trace.devices import Change, DeviceTrace, Trouble, compose

NODES, PER_NODE = 2, 2
GPUS = NODES * PER_NODE
END = 40


@dataclass(frozen=True)
class State:
    """What is wrong with a GPU at an instant. Factors in thousandths; skew -1: the load's own."""

    down: bool = False
    deadline: int | None = None
    slow: int = 1000
    host: int = 1000


def random_line(rng: random.Random) -> Trouble:
    kind = rng.choice(("slow", "slow", "lost", "lost", "back", "notice", "host", "skew"))
    at, node = rng.randrange(END), rng.random() < 0.3
    place = (-1, rng.randrange(NODES)) if node else (rng.randrange(GPUS), -1)
    factor, ends, deadline = 0, 0, 0
    if kind in ("slow", "host"):
        factor = rng.choice((1000, 1500, 2000, 4000) if kind == "host" else (500, 1000, 2000, 4000))
    if kind == "skew":
        place, factor = (-1, -1), rng.choice((0, 500, 1200))
    if kind in ("slow", "lost", "host", "skew") and rng.random() < 0.6:
        ends = rng.randrange(1, 15)
    if kind == "notice":
        deadline = rng.randrange(10)
    return Trouble(at, kind, *place, factor, ends, deadline)


def covers(one: Trouble, gpu: int) -> bool:
    return one.gpu == gpu or (one.node >= 0 and one.node == gpu // PER_NODE)


def worst(lines: list[Trouble], kind: str, at: int, none: int) -> int:
    """Of the spells on at an instant: those with an end by their times, and the newest without."""
    mine = [one for one in lines if one.kind == kind]
    on = [one.factor for one in mine if one.for_ps and one.at_ps <= at < one.at_ps + one.for_ps]
    standing = [one for one in mine if not one.for_ps and one.at_ps <= at]
    newest = max(standing, key=lambda one: (one.at_ps, lines.index(one)), default=None)
    if newest is not None:
        on.append(newest.factor)
    on = [one for one in on if one != 1000 or kind == "skew"]
    return max(on, default=none)


def state_at(lines: list[Trouble], at: int) -> State:
    """From the definition, without a history: lines of one GPU that begin by `at`, by time and then
    as in the file."""
    begun = sorted((one for one in lines if one.at_ps <= at), key=lambda one: one.at_ps)
    down = any(
        one.kind == "lost" and one.for_ps and one.at_ps <= at < one.at_ps + one.for_ps
        for one in begun
    )
    ends = [n for n, one in enumerate(begun) if one.kind == "back"]
    standing = [n for n, one in enumerate(begun) if one.kind == "lost" and not one.for_ps]
    down = down or (bool(standing) and standing[-1] > (ends[-1] if ends else -1))
    over = [n for n, one in enumerate(begun) if one.kind in ("lost", "back")]
    told = [
        one.at_ps + one.deadline_ps
        for one in begun[over[-1] + 1 if over else 0 :]
        if one.kind == "notice"
    ]
    return State(
        down,
        min(told, default=None),
        worst(lines, "slow", at, 1000),
        worst(lines, "host", at, 1000),
    )


def walked(changes: list[Change], gpu: int) -> dict[int, State]:
    """The state after each instant, as a backend that hears the changes one by one has it."""
    found: dict[int, State] = {}
    down, deadline, slow, host = False, None, 1000, 1000
    by_time: dict[int, list[Change]] = {}
    for change in changes:
        if change.gpu == gpu:
            by_time.setdefault(change.at_ps, []).append(change)
    for at in range(END + 20):
        for change in by_time.get(at, []):
            if change.kind == "lost":
                assert not down, "lost twice"
                down = True
            elif change.kind == "back":
                assert down or deadline is not None, "back from nowhere"
                down, deadline = False, None
            elif change.kind == "notice":
                assert not down, "what is gone needs no notice"
                deadline = change.deadline_ps
            elif change.kind == "slow":
                assert change.speed != slow, "no change"
                slow = change.speed
            elif change.kind == "host":
                assert change.speed != host, "no change"
                host = change.speed
        found[at] = State(down, deadline, slow, host)
    return found


@pytest.mark.parametrize("seed", range(80))
def test_random_troubles_compose_as_the_instants_say(seed: int) -> None:
    rng = random.Random(seed)
    lines = [random_line(rng) for _ in range(rng.randrange(1, 30))]
    changes = compose(lines, GPUS, PER_NODE)
    times = [(one.at_ps, one.gpu) for one in changes]
    assert times == sorted(times)
    for gpu in range(GPUS):
        mine = [one for one in lines if covers(one, gpu)]
        for at, state in walked(changes, gpu).items():
            wanted = state_at(mine, at)
            assert (state.slow, state.host, state.down) == (wanted.slow, wanted.host, wanted.down)
            if not wanted.down:  # a notice for a GPU that is gone is told when it is back
                assert state.deadline == wanted.deadline
    skews = {one.at_ps: one.speed for one in changes if one.kind == "skew"}
    now = -1
    for at in range(END + 20):
        now = skews.get(at, now)
        assert now == worst(lines, "skew", at, -1)


@pytest.mark.parametrize("seed", range(40))
def test_every_loss_of_a_gpu_that_is_up_is_told(seed: int) -> None:
    """Also one that is over at once: what the GPU held is gone."""
    rng = random.Random(seed)
    lines = [random_line(rng) for _ in range(rng.randrange(1, 30))]
    changes = compose(lines, GPUS, PER_NODE)
    for gpu in range(GPUS):
        mine = [one for one in lines if covers(one, gpu)]
        begins = {one.at_ps for one in mine if one.kind == "lost"}
        told = {one.at_ps for one in changes if one.gpu == gpu and one.kind == "lost"}
        assert told == {at for at in begins if at == 0 or not state_at(mine, at - 1).down}


@pytest.mark.parametrize("seed", range(40))
def test_a_window_is_the_trace_from_then_on(seed: int) -> None:
    rng = random.Random(seed)
    lines = [random_line(rng) for _ in range(rng.randrange(1, 30))]
    start, duration = rng.randrange(END), rng.choice((0, 10))
    trace = DeviceTrace(name="t", troubles=tuple(lines), gpus=GPUS, gpus_per_node=PER_NODE)
    part = trace.window(start, duration)
    whole = compose(lines, GPUS, PER_NODE)
    cut = compose(part.troubles, GPUS, PER_NODE)
    for gpu in range(GPUS):
        before, after = walked(whole, gpu), walked(cut, gpu)
        for at in range(start, min(END, start + (duration or END))):
            assert (before[at].down, before[at].slow, before[at].host) == (
                after[at - start].down,
                after[at - start].slow,
                after[at - start].host,
            )


def test_a_failure_within_a_reclaim() -> None:
    """The GPU is repaired before it is taken; it is back, and still to go."""
    lines = [
        Trouble(10, "lost", 0, for_ps=20),
        Trouble(20, "notice", 0, deadline_ps=40),
        Trouble(60, "lost", 0, for_ps=5),
    ]
    assert [(one.at_ps, one.kind, one.deadline_ps) for one in compose(lines, 1, 1)] == [
        (10, "lost", 0),
        (30, "back", 0),
        (30, "notice", 60),
        (60, "lost", 0),
        (65, "back", 0),
    ]
