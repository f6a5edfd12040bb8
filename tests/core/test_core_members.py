"""Engines that are slow, lost and back: who takes rows, and what becomes of those they had."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from core_cases import TROUBLES, Case, Row, random_case, run, swaps
from core_invariants import Invariants

from batchgen import actions as act
from batchgen.log import Entry
from batchgen.runtime.core import Runtime

LONG = tuple(Row(prompt=5, budget=300, output=300) for _ in range(8))
FOUR_TIMES = 7  # the factor of this trouble's number, about (3.8)
HEALED = 0
STEALS = {"placement.part": "least-work"}


def test_rows_of_a_slow_engine_come_to_engines_that_are_free() -> None:
    """They run there although nobody waits: free engines are asked again when one turns slow."""
    case = Case(preset="vllm", overrides=STEALS, rows=LONG, engines=2, hbm_pages=2000)
    slow = replace(case, troubles=(("slow", 100_000, 0, FOUR_TIMES),))
    early = tuple(replace(row, output=30) if index % 2 else row for index, row in enumerate(LONG))
    slow = replace(slow, rows=early)  # engine 1 gets the short ones, and is soon free
    moved = run(slow, checker=Invariants(slow))
    kept = run(replace(slow, overrides={**STEALS, "placement.steal": "false"}))
    assert sum(moved.table.migrations) >= 1
    assert max(moved.times()[1]) < 0.7 * max(kept.times()[1])


def test_an_engine_that_was_slow_heals() -> None:
    """A row of those that wait elsewhere is tried on it after a while; it takes more then."""
    late = tuple(Row(prompt=5, budget=200, output=200, arrival=8_000_000) for _ in range(16))
    case = Case(
        preset="vllm",
        overrides=STEALS,
        rows=LONG + late,
        engines=2,
        hbm_pages=2000,
        seqs=4,
        troubles=(("slow", 100_000, 0, FOUR_TIMES), ("slow", 600_000, 0, HEALED)),
    )
    was: list[int] = []
    outcome = run(case, checker=lambda rt, _: was.append(len(rt.cluster.members.slow)))
    assert max(was) == 1
    assert was[-1] == 0
    engines = outcome.table.engine.tolist()[len(LONG) :]
    assert engines.count(0) >= 2


def test_no_healthy_engine_is_taken_for_slow() -> None:
    """However different their passes are: each is held against what it holds."""

    def nobody(runtime: Runtime, entry: Entry) -> None:
        assert not runtime.cluster.members.slow

    kinds = tuple(kind for kind in TROUBLES if kind != "slow")
    compositions = [(name, swap) for name, swap in swaps() if "placement.part" not in swap]
    for seed in range(150):
        rng = random.Random(seed)
        name, swap = rng.choice(compositions)
        case = random_case(rng, (name, {**swap, **STEALS}), kinds=kinds)
        run(replace(case, advised=True), checker=nobody)


def test_work_that_has_ended_is_not_held_against_an_engine() -> None:
    """An engine that comes back is given its part of what arrives, not everything."""
    first = tuple(Row(prompt=5, budget=40, output=40) for _ in range(20))
    later = tuple(Row(prompt=5, budget=40, output=40, arrival=3_000_000) for _ in range(20))
    case = Case(
        preset="batchgen",
        rows=first + later,
        engines=2,
        hbm_pages=2000,
        seqs=64,
        troubles=(("lost", 1000, 0, 0), ("back", 2_000_000, 0, 0)),
    )
    outcome = run(case, checker=Invariants(case))
    placed = [
        action
        for entry in outcome.entries
        if entry.t == 3_000_000
        for action in entry.actions
        if isinstance(action, act.Place)
    ]
    assert [(one.engine, len(one.rows)) for one in placed[:2]] == [(0, 10), (1, 10)]


def test_an_engine_lives_while_all_its_devices_do() -> None:
    rows = (Row(prompt=5, budget=30, output=30),) * 3
    troubles = [("lost", 10_000, 0, 0), ("lost", 20_000, 0, 1), ("back", 30_000, 0, 0)]
    case = Case(preset="vllm", rows=rows, devices=2, troubles=tuple(troubles))
    assert set(run(case, checker=Invariants(case)).reasons.values()) == {"no_device"}
    whole = replace(case, troubles=(*case.troubles, ("back", 900_000, 0, 1)))
    outcome = run(whole, checker=Invariants(whole))
    assert set(outcome.reasons.values()) == {"length"}
    assert min(outcome.times()[1]) > 900_000


@pytest.mark.parametrize("depth", [1, 2])
def test_the_host_outlives_its_device(depth: int) -> None:
    """What was streamed to the host is copied from there, and not computed again."""
    rows = (Row(prompt=60, budget=120, output=120),) * 4
    case = Case(
        preset="batchgen",
        overrides={"recovery.part": "rehome"},  # copies of these toys take longer than prefill
        rows=rows,
        engines=2,
        hbm_pages=2000,
        host_pages=2000,
        depth=depth,
        troubles=(("lost", 500_000, 0, 0),),
    )
    outcome = run(case, checker=Invariants(case))
    copies = [
        action
        for entry in outcome.entries
        for action in entry.actions
        if isinstance(action, act.Copy) and action.purpose == "migrate"
    ]
    assert {copy.from_pool for copy in copies} == {"host"}
    moved = [row for copy in copies for row in copy.rows]
    assert moved
    for row in moved:
        assert 0 <= outcome.table.recomputed[row] <= case.page
    assert set(outcome.reasons.values()) == {"length"}


# -- the tail -------------------------------------------------------------------------------------

FEW = tuple(Row(prompt=8, budget=200, output=100 + 20 * index) for index in range(4))
TAIL = Case(preset="batchgen", rows=FEW, ranks=4, hbm_pages=200, host_pages=0)


def switches(case: Case) -> list[tuple[int, str]]:
    """(engine, layout) of every switch."""
    outcome = run(case, checker=Invariants(case))
    assert set(outcome.reasons.values()) <= {"length", "stop"}
    return [(one[2], one[3]) for one in outcome.walker.others if one[1] == "switch"]


def test_a_tail_is_partitioned_within_the_pools_of_its_layout() -> None:
    seen: list[tuple[int, int]] = []

    def pools(runtime: Runtime, entry: Entry) -> None:
        engine = runtime.cluster.engines[0]
        if engine.layout != "home":
            seen.append((len(engine.ranks), engine.ranks[0].size))

    assert switches(TAIL) == [(0, "half")]
    run(TAIL, checker=pools)
    assert set(seen) == {(2, 400)}


def test_a_partition_waits_for_the_end_of_input() -> None:
    late = Row(prompt=8, budget=10, output=10, arrival=250_000)
    case = replace(TAIL, rows=(*FEW, late))
    outcome = run(case)
    closed = next(e.t for e in outcome.entries if type(e.event).__name__ == "InputClosed")
    times = [one[0] for one in outcome.walker.others if one[1] == "switch"]
    assert times
    assert min(times) >= closed


def test_a_partition_is_undone_when_rows_come() -> None:
    """Rows of an engine that is lost come to one that has partitioned already."""
    more = tuple(Row(prompt=8, budget=300, output=60 + 8 * index) for index in range(24))
    case = replace(TAIL, engines=2, rows=(*FEW, *more))
    at, _, engine, layout, _ = next(one for one in run(case).walker.others if one[1] == "switch")
    assert layout == "half"
    lost = replace(case, troubles=(("lost", at + 100_000, 1 - engine, 0),))
    assert switches(lost)[:2] == [(engine, "half"), (engine, "home")]


@pytest.mark.parametrize(("copy_ps", "copies"), [(1, True), (1_000_000, False)])
def test_what_is_cheaper_to_compute_anew_is_not_copied(copy_ps: int, copies: bool) -> None:
    """Rows leave an engine whose device will go: over a fast link as they are, else as prompts."""
    case = Case(
        preset="vllm",
        overrides={"recovery.part": "cheapest"},
        rows=tuple(Row(prompt=60, budget=300, output=300) for _ in range(8)),
        engines=2,
        hbm_pages=2000,
        copy_ps=copy_ps,
        troubles=(("notice", 400_000, 0, 0),),
    )
    outcome = run(case, checker=Invariants(case))
    moved = [one for entry in outcome.entries for one in entry.actions if isinstance(one, act.Copy)]
    assert bool(moved) == copies
    assert bool(sum(outcome.table.recomputed)) != copies
    assert sum(outcome.table.migrations) + sum(outcome.table.preemptions) >= 4
    always = replace(case, overrides={"recovery.part": "rehome" if copies else "recompute"})
    assert run(always).times() == outcome.times()
