"""Engines that are late by little: the test that finds them, how many running rows gain, and that
no decision depends on the length of steps."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from core_cases import Case, Row, random_case, run, swaps
from core_verify import verify_core

import batchgen
from batchgen.runtime.cluster import hunger
from batchgen.runtime.cluster.lag import AS_EXPECTED, LATE_ON_BALANCE, Lag
from batchgen.runtime.cluster.level import Composition, rows_to_give
from batchgen.runtime.cluster.machine import ClusterMachine
from batchgen.runtime.engine import decide
from batchgen.runtime.engine.giving import freeze
from batchgen.runtime.engine.machine import EngineMachine

# -- the test -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.02, 0.1, 0.2])
def test_accidents_of_healthy_engines_are_seldom_taken_for_lag(chance: float) -> None:
    """Passes late by a heavy-tailed factor, one of fifty to one of five: of a hundred that are
    timed fewer than one gives an alarm; the bound that `LATE_ON_BALANCE` states is one of 1,000."""
    rng = random.Random(round(100 * chance))
    timed, alarms, lag = 200_000, 0, Lag()
    for _ in range(timed):
        is_late = rng.random() < chance
        if not (is_late or lag.balance):
            continue
        lag.tell(is_late, round(1200 * rng.paretovariate(1)) if is_late else AS_EXPECTED)
        if lag.found or not lag.balance:
            alarms += lag.found
            lag = Lag()
    assert alarms < 0.001 * timed


@pytest.mark.parametrize("seed", range(20))
def test_what_is_always_late_is_found_and_measured(seed: int) -> None:
    """As soon as may be, and two accidents of five do not change by how much."""
    rng = random.Random(seed)
    ratio, lag = rng.randrange(1051, 1500), Lag()
    accidents = rng.sample(range(LATE_ON_BALANCE), rng.randint(0, 2))
    for index in range(LATE_ON_BALANCE):
        assert not lag.found
        lag.tell(True, 20 * ratio if index in accidents else ratio)
    assert lag.found
    assert lag.lateness == ratio
    for _ in range(LATE_ON_BALANCE):  # it heals
        assert lag.balance
        lag.tell(False, AS_EXPECTED)
    assert not lag.balance
    assert lag.lateness == AS_EXPECTED


# -- how many gain --------------------------------------------------------------------------------


def composition(rows: int, context: int, left: int, free: int) -> Composition:
    return Composition([(rows, rows * context, 0, 0, 0, rows, 0)], left, free)


def lagging(rng: random.Random) -> tuple[ClusterMachine, int]:
    """A cluster whose engine 0 lags, all running, and how many of the others are hungry."""
    engines = rng.randint(2, 6)
    rows = (Row(prompt=4, budget=4, output=4),) * 4
    case = Case(preset="batchgen", rows=rows, engines=engines, hbm_pages=rng.choice((50, 5000)))
    cluster = case.runtime().cluster
    lag = cluster.pace._lags[0] = Lag()
    for _ in range(LATE_ON_BALANCE):
        lag.tell(True, rng.randrange(1051, 4000))
    for engine in cluster.engines:
        engine.settled = rng.choice((0, rng.randint(1, 60)))
        context = rng.randint(1, 400)
        cluster.pace.seen[engine.id] = composition(
            engine.settled, context, rng.choice((1, 30, 3000)), rng.randint(0, case.hbm_pages)
        )
    return cluster, rng.randint(1, engines - 1)


@pytest.mark.parametrize("seed", range(100))
def test_the_last_row_that_moves_gains_and_one_more_would_not(seed: int) -> None:
    """Against a plain count, one row after the other, in whole passes of the toy's cost."""
    cluster, count = lagging(random.Random(seed))
    advisor, seen, pace = cluster.advisor, cluster.pace.seen, cluster.pace
    takers, donor = cluster.engines[1 : 1 + count], cluster.engines[0]
    assert advisor is not None
    mine = seen[0]
    rows = sum(one.settled for one in takers) // count
    theirs = sum(seen[one.id].rows * seen[one.id].context for one in takers)
    total = sum(seen[one.id].rows for one in takers)
    context = theirs // total if total else mine.context
    free = [seen[one.id].free if one.settled else one.ranks[0].size for one in takers]
    room = sum(pages // (mine.context // donor.page_tokens + 2) for pages in free)
    wanted = 0
    while wanted < min(mine.rows, room):
        kept, more = mine.rows - wanted, -(-(wanted + 1) // count)
        read = rows * context + more * mine.context
        there = advisor.expected_ps(1, "home", [(rows + more, read, 0, 0, 0, rows + more, 0)])
        here = advisor.expected_ps(0, "home", [(kept, kept * mine.context, 0, 0, 0, kept, 0)])
        here = here * pace.lateness(donor) // 1000
        if mine.left * (here - there) <= (wanted + 1) * advisor.copy_ps(mine.context, "inter"):
            break
        wanted += 1
    assert rows_to_give(cluster, donor, takers) == wanted


def test_rows_that_nobody_has_room_for_stay() -> None:
    cluster, _ = lagging(random.Random(1))
    cluster.engines[1].settled = 5
    cluster.pace.seen[0] = composition(50, 100, 3000, 0)
    cluster.pace.seen[1] = composition(5, 100, 3000, 0)
    assert rows_to_give(cluster, cluster.engines[0], cluster.engines[1:2]) == 0


# -- whole runs -----------------------------------------------------------------------------------

LONG = tuple(Row(prompt=5, budget=2000, output=2000) for _ in range(8))
BY_A_THIRD = 2  # the factor of this trouble's number, about (1.3)
LAGS = Case(
    preset="batchgen",
    rows=tuple(replace(row, output=30) if index % 2 else row for index, row in enumerate(LONG)),
    engines=2,
    hbm_pages=6000,
    troubles=(("slow", 100_000, 0, BY_A_THIRD),),
)
"""Every second row ends early, so that one engine is hungry while the other lags."""


def test_running_rows_leave_an_engine_that_lags() -> None:
    """None waits, and the engine is not slow: those rows move that gain by it. All end sooner."""
    slow: list[int] = []
    moved = run(LAGS, checker=lambda rt, _: slow.append(len(rt.cluster.members.slow)))
    kept = run(replace(LAGS, overrides={"placement.late_factor": "2"}))
    assert not max(slow)
    assert sum(moved.table.migrations) >= 1
    assert max(moved.times()[1]) < 0.9 * max(kept.times()[1])


def longer(row: Row, times: int) -> Row:
    return replace(row, budget=times * row.budget, output=times * row.output)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows given, engines that take them) of every question, while a test runs."""
    answers: list[tuple[int, int]] = []

    def asked(cluster: ClusterMachine, donor: EngineMachine, takers: list[EngineMachine]) -> int:
        count = rows_to_give(cluster, donor, takers)
        answers.append((count, len(takers)))
        return count

    monkeypatch.setattr(hunger, "rows_to_give", asked)
    return answers


@pytest.mark.skipif(batchgen.is_compiled(), reason="moves are counted by patching")
def test_several_engines_share_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are long, those of the others have ended."""
    rows = tuple(
        Row(prompt=5, budget=3000, output=1500 if index % 4 == 0 else 40) for index in range(40)
    )
    case = Case(
        preset="batchgen",
        rows=rows,
        engines=4,
        hbm_pages=9000,
        advised=True,
        troubles=(("slow", 0, 0, BY_A_THIRD),),
    )
    gave = counted(monkeypatch)
    verify_core(case)
    assert any(count and takers > 1 for count, takers in gave), gave


@pytest.mark.skipif(batchgen.is_compiled(), reason="moves are counted by patching")
@pytest.mark.parametrize("seed", range(2))
def test_no_decision_about_them_depends_on_the_length_of_steps(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines late by little and by much, in all compositions: coalesced steps decide as single
    passes do, all rows end, and as many rows leave an engine as shall."""
    gave = counted(monkeypatch)

    def watched(engine: EngineMachine) -> None:
        running = sum(len(rank.running) for rank in engine.ranks)
        part, of = (1, 1) if engine.draining else engine.freezing_share
        freeze(engine)
        left = running - sum(len(rank.running) for rank in engine.ranks)
        assert left == -(-running * part // of)

    monkeypatch.setattr(decide, "freeze", watched)
    rng = random.Random(seed)
    compositions = swaps()
    for number in range(20):
        composition = ("batchgen", {}) if number % 2 else rng.choice(compositions)
        case = random_case(rng, composition)
        troubles = [*case.troubles] if number % 4 != 1 else []
        for _ in range(rng.randint(1, 3)):
            at = rng.choice((0, 100_000, 300_000, 700_000))
            troubles.append(("slow", at, rng.randrange(64), rng.choice((0, 1, 2, 2, 4, 7))))
        more = 4 if number % 4 == 1 else 1
        case = replace(
            case,
            rows=tuple(
                replace(row, budget=more * row.budget, output=more * row.output)
                for row in case.rows
            ),
            advised=True,
            engines=max(2, case.engines),
            roles=case.roles if case.engines > 1 else (),
            hbm_pages=case.hbm_pages * rng.choice((1, 8)) * more,
            boundary=rng.choice((4, 16, 64)),
            troubles=tuple(troubles),
            overrides={**case.overrides, "placement.part": "least-work"},
        )
        verify_core(case)
    assert any(count for count, _ in gave), "no row moves with this seed any more: look for another"


def test_what_an_engine_had_is_seen_when_it_looks_around() -> None:
    """Found by drawn cases: what it had as it last decided depends on the length of steps."""
    lengths = (
        (11, 30, 1), (28, 10, 2), (35, 37, 28), (33, 32, 9), (27, 33, 25), (30, 10, 6), (9, 17, 2),
        (20, 3, 1), (24, 30, 15), (10, 27, 17), (4, 1, 1), (14, 15, 1), (25, 38, 13), (24, 8, 8),
        (39, 34, 21), (27, 32, 3), (11, 38, 23), (6, 10, 9), (12, 31, 21), (33, 19, 19), (7, 26, 2),
        (19, 2, 1), (7, 13, 12), (1, 37, 25),
    )  # fmt: skip
    shared = (
        (1, 0), (1, 14), (0, 4), (-1, 0), (2, 26), (1, 20), (-1, 0), (-1, 0), (0, 8), (0, 10),
        (1, 3), (-1, 0), (0, 14), (1, 10), (0, 37), (0, 24), (0, 2), (2, 4), (0, 12), (-1, 0),
        (0, 0), (0, 8), (1, 1), (0, 1),
    )  # fmt: skip
    rows = tuple(
        Row(prompt=prompt, budget=budget, output=output, group=group, shared=prefix)
        for (prompt, budget, output), (group, prefix) in zip(lengths, shared, strict=True)
    )
    case = Case(
        preset="vllm",
        rows=rows,
        engines=2,
        ranks=2,
        engines_per_node=2,
        hbm_pages=16,
        host_pages=8,
        page=4,
        boundary=64,
        budget=4,
        seqs=2,
        troubles=(("pool_short", 188981, 52, 23), ("slow", 0, 41, 2)),
        overrides={"order.part": "heavy-first", "placement.part": "least-work"},
        copy_ps=10,
    )
    verify_core(case)


@pytest.mark.parametrize("preset", ["batchgen", "vllm"])
def test_where_all_are_late_by_as_much_none_gives_rows(preset: str) -> None:
    """As when the cost model is wrong for all engines alike."""
    troubles = tuple(("slow", 0, engine, BY_A_THIRD) for engine in range(3))
    case = Case(
        preset=preset,
        rows=tuple(replace(row, output=200 + 600 * (n % 3)) for n, row in enumerate(3 * LONG)),
        engines=3,
        hbm_pages=6000,
        advised=True,
        troubles=troubles,
        overrides={"placement.part": "least-work"},
    )
    late = run(case)
    never = run(replace(case, overrides={**case.overrides, "placement.late_factor": "1000000"}))
    assert max(late.times()[1]) <= 1.001 * max(never.times()[1])
    assert sum(late.table.migrations) <= sum(never.table.migrations) + 1


def test_rows_that_would_be_prefilled_again_stay() -> None:
    """Nothing would keep them from coming back to the engine that they left."""
    case = replace(LAGS, overrides={"recovery.part": "recompute"})
    found = run(case)
    assert not sum(found.table.recomputed)
    never = run(replace(case, overrides={**case.overrides, "placement.late_factor": "2"}))
    assert found.times() == never.times()
