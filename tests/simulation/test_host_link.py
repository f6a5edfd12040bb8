"""Copies and what passes stream share the host link: first come, first served, never above its
rate.

Every pass of a case may fetch weights (`stream_ps`), and engines with checkpoints write as they
decode; suspended rows are copied down, restored rows up.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from core_cases import Case, Row, random_case
from core_sim import simulate_case
from core_steady import steady_composition
from core_verify import verify_backends, verify_core

from batchgen import actions as act
from batchgen import events as ev
from batchgen.check.loads import scarcer
from batchgen.check.toy import ToyCost
from batchgen.cost.api import CostModel
from batchgen.sim.cluster import Simulation
from batchgen.sim.hostlink import DOWN, IN, OUT, UP, HostLink, copy_over
from batchgen.sim.passtimes import PassTimes
from batchgen.step import Step

SUSPEND = "suspend-most-decoded"
CHANGED_BEFORE_BEGIN = (192, 784)
"""Cases in which an engine's speed changes while a launched step still waits for the link."""


def contended(seed: int) -> Case:
    """Scarce pages, so that rows are suspended and restored, on links that passes use too."""
    rng = random.Random(seed)
    kinds = rng.choice(((), ("slow",), ("slow", "lost", "back", "cancel", "plan")))
    case = random_case(rng, steady_composition(seed, memory=SUSPEND), kinds=kinds)
    if kinds == ("slow",):  # so many that some fall between a launch and its first pass
        often = tuple(
            ("slow", rng.randint(0, 600_000), rng.randint(0, 63), rng.randint(0, 63))
            for _ in range(25)
        )
        case = replace(case, troubles=case.troubles + often)
    return replace(
        scarcer(case, rng.choice((0.2, 0.4, 0.7))),
        stream_ps=rng.choice((0, 1000, 4900)),
        host_pages=rng.choice((case.hbm_pages // 2, 10_000)),
        copy_ps=rng.choice((10, 170, 3000)),
        depth=rng.choice((1, 2)),
    )


def test_links_serve_as_in_the_plain_walk() -> None:
    for seed in range(150):
        verify_backends(contended(seed))


@pytest.mark.parametrize("seed", CHANGED_BEFORE_BEGIN)
def test_a_speed_that_changes_before_a_step_begins(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = []
    change = PassTimes.change

    def watched(self: PassTimes, speed: int, cost: CostModel, begun: int, kept: int) -> None:
        waiting.append(begun == 0 and 0 in self.waits)
        change(self, speed, cost, begun, kept)

    monkeypatch.setattr(PassTimes, "change", watched)
    verify_backends(contended(seed))
    assert any(waiting), "this seed shows it no more: look for another"


def test_any_split_of_a_step_gives_the_same_waits() -> None:
    for seed in range(150, 190):
        verify_core(contended(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 9000, 500))
def test_links_serve_as_in_the_plain_walk_at_length(first: int) -> None:
    for seed in range(first, first + 500):
        verify_backends(contended(seed))
        verify_core(contended(seed))


Move = tuple[int, int, int]
"""(asked at, done by, time on the link)."""


def moves_of(case: Case) -> dict[tuple[int, int], list[Move]]:
    """By engine and direction, all that crossed a link of a case of one rank, by what was told: not
    by what the simulator says of its links."""
    simulation, entries = simulate_case(case, reference=True)
    cost = ToyCost(1, copy_ps=case.copy_ps)
    moves: dict[tuple[int, int], list[Move]] = {}
    copies: dict[int, tuple[int, act.Copy]] = {}
    checkpoints: set[tuple[int, int]] = set()
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.CopiesDone) and event.copy_id in copies:
            asked, copy = copies.pop(event.copy_id)
            lane = DOWN if copy.to_pool == "host" else UP
            time = cost.copy_ps(sum(copy.tokens), "host")
            moves.setdefault((copy.engine, lane), []).append((asked, entry.t, time))
        for action in entry.actions:
            if isinstance(action, Step) and action.checkpoint == "host":
                checkpoints.add((action.engine, action.q0))
            elif isinstance(action, act.Copy) and action.engine == action.to_engine:
                copies[action.copy_id] = entry.t, action
    columns = simulation.recorder.steps(cost)
    names = ("engine", "q0", "start_ps", "duration_ps", "running", "prompt_tokens")
    for engine, number, begin, time, rows, prompts in zip(
        *(columns[name].tolist() for name in names), strict=True
    ):
        if case.stream_ps:
            moves.setdefault((engine, UP), []).append((begin, begin + time, case.stream_ps))
        if (engine, number) in checkpoints:
            written = cost.CHECKPOINT * (rows + prompts)
            moves.setdefault((engine, DOWN), []).append((begin, begin + time, written))
    return moves


def test_no_link_moves_more_than_its_rate() -> None:
    """Whatever is asked for after one moment and done by another has fitted between them."""
    several = 0
    for seed in range(400):
        case = replace(contended(seed), ranks=1, troubles=(), bad_copies=0)
        for moves in moves_of(case).values():
            begins = sorted({asked for asked, _, _ in moves})
            for begin in begins[:: max(1, len(begins) // 40)]:
                busy = 0
                for done, time in sorted(
                    (end, time) for asked, end, time in moves if asked >= begin
                ):
                    busy += time
                    assert busy <= done - begin, (seed, begin, done, busy)
            several += len(moves) > 1
    assert several > 100


def among_engines(seed: int) -> Case:
    """Rows move between engines whose passes use the host link, most of them over it."""
    rng = random.Random(seed)
    kinds = rng.choice(
        ((), ("slow",), ("notice", "lost", "back"), ("slow", "lost", "back", "plan"))
    )
    case = random_case(rng, steady_composition(seed), kinds=kinds)
    return replace(
        scarcer(case, rng.choice((0.2, 0.4, 0.7, 1.0))),
        stream_ps=rng.choice((0, 1000, 4900)),
        host_pages=rng.choice((case.hbm_pages // 2, 10_000)),
        copy_ps=rng.choice((10, 170, 3000)),
        depth=rng.choice((1, 2)),
        engines_per_node=rng.choice((1, 8)),
        peers_over_host=rng.random() < 0.7,
    )


def test_copies_between_engines_queue_on_the_links_that_they_cross(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the plain walk, where every pass asks when it begins: also when the other engine is in
    the middle of a step, and any split of that step gives the same waits."""
    asked: list[int] = []
    ask = Simulation._asks

    def counted(self: Simulation, engine: int, now: int) -> int:
        asked.append(ask(self, engine, now))
        return asked[-1]

    monkeypatch.setattr(Simulation, "_asks", counted)
    for seed in range(160):
        verify_backends(among_engines(seed))
    assert sum(begun > 0 for begun in asked) > 10
    for seed in range(160, 190):
        verify_core(among_engines(seed))


def test_a_queue_is_of_one_direction() -> None:
    link = HostLink()
    assert copy_over([(link, DOWN)], 50, 10) == 60
    assert copy_over([(link, UP)], 30, 10) == 40
    assert copy_over([(link, DOWN)], 5, 20) == 65
    assert link.busy_ps == 65
    assert copy_over([(link, OUT)], 900, 20) == 920
    assert link.busy_ps == 65


def test_a_copy_waits_for_both_of_its_links() -> None:
    """Two sources that send to one engine share its way in; what it sends meanwhile does not."""
    first, second, target = HostLink(), HostLink(), HostLink()
    assert copy_over([(first, OUT), (target, IN)], 100, 0) == 100
    assert copy_over([(second, OUT), (target, IN)], 40, 10) == 140
    assert copy_over([(target, OUT), (first, IN)], 30, 10) == 40
    assert copy_over([(second, OUT), (first, IN)], 5, 20) == 145
    assert copy_over([(first, DOWN), (target, UP)], 7, 20) == 27
    assert (first.busy_ps, target.busy_ps, second.busy_ps) == (27, 27, 0)


def test_waiting_for_a_copy_is_no_slowness() -> None:
    """What an engine waited for copies is in the times of its steps, and not in what it reports."""
    rows = tuple(Row(prompt=20, budget=60, output=60) for _ in range(12))
    case = Case(
        preset="batchgen",
        rows=rows,
        hbm_pages=44,
        host_pages=10_000,
        copy_ps=3000,
        stream_ps=4900,
    )
    for slow_link in (False, True):
        simulation, entries = simulate_case(case if slow_link else replace(case, stream_ps=0))
        lasted = int(simulation.recorder.steps(ToyCost())["duration_ps"].sum())
        told = sum(
            entry.event.duration_ps for entry in entries if isinstance(entry.event, ev.Landed)
        )
        assert told < lasted if slow_link else told == lasted


MOVED_FROM_A_HOST = (31, 350)
"""Cases in which suspended rows go to another engine of the node, since theirs is lost."""


def test_what_another_host_holds_comes_at_the_rate_of_the_host_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No link between GPUs reaches rows that lie on a host."""

    def copy_ps(self: ToyCost, tokens: int, link: str) -> int:
        return tokens * {"intra": 1, "inter": 70, "host": 900}[link]

    monkeypatch.setattr(ToyCost, "copy_ps", copy_ps)
    moved = 0
    for seed in MOVED_FROM_A_HOST:
        rng = random.Random(seed)
        composition = steady_composition(seed, memory=SUSPEND)
        case = random_case(rng, composition, kinds=("notice", "lost", "back"))
        case = scarcer(case, rng.choice((0.2, 0.4)))
        case = replace(case, host_pages=10_000, ranks=1, bad_copies=0)
        verify_backends(case)
        engines = case.plan().engines
        copies: dict[int, tuple[int, int]] = {}
        for entry in simulate_case(case)[1]:
            if isinstance(entry.event, ev.CopiesDone) and entry.event.copy_id in copies:
                asked, tokens = copies[entry.event.copy_id]
                assert entry.t - asked >= 900 * tokens
                moved += 1
            for action in entry.actions:
                if isinstance(action, act.Copy) and action.from_pool == "host":
                    nodes = {engines[one].node for one in (action.engine, action.to_engine)}
                    if action.engine != action.to_engine and len(nodes) == 1:
                        copies[action.copy_id] = entry.t, sum(action.tokens)
    assert moved, "these seeds show it no more: look for others"
