"""Faults that the core once had, one test for each: devices lost, noticed and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_cases import Case, Row, run
from core_copies import copies
from core_invariants import Invariants
from core_verify import verify_core

from batchgen import actions as act
from batchgen.step import Step

STEALS = {"placement.part": "least-work"}


def test_suspended_rows_outlive_their_device() -> None:
    """What lay on the host is copied from there, not computed again."""
    case = Case(
        preset="vllm",
        overrides={"memory.part": "suspend-most-decoded"},
        rows=tuple(Row(prompt=20, budget=100, output=100) for _ in range(8)),
        engines=2,
        hbm_pages=60,
        host_pages=1000,
    )
    suspended = copies(run(case), "suspend")
    first = next(copy for copy in suspended if copy.engine == 0)
    at = next(
        entry.t
        for entry in run(case).entries
        if any(isinstance(one, act.Copy) and one.rows == first.rows for one in entry.actions)
    )
    lost = replace(case, troubles=(("lost", at + 20_000, 0, 0),))
    outcome = run(lost, checker=Invariants(lost))
    moved = copies(outcome, "migrate")
    assert {copy.from_pool for copy in moved} == {"host"}
    assert set(first.rows) <= {row for copy in moved for row in copy.rows}
    for row in first.rows:
        assert outcome.table.recomputed[row] == 0
    assert set(outcome.reasons.values()) == {"length"}


def test_rows_leave_a_noticed_engine_as_soon_as_there_is_another() -> None:
    """Nobody could take them when the notice came."""
    rows = tuple(Row(prompt=5, budget=100, output=100) for _ in range(6))
    case = Case(
        preset="vllm",
        rows=rows,
        engines=2,
        hbm_pages=2000,
        troubles=(
            ("lost", 1000, 1, 0),
            ("notice", 50_000, 0, 0),
            ("back", 100_000, 1, 0),
            ("lost", 200_000, 0, 0),
        ),
    )
    outcome = run(case, checker=Invariants(case))
    assert sum(len(copy.rows) for copy in copies(outcome, "migrate")) == 6
    assert sum(outcome.table.recomputed) == 0


def test_work_is_counted_once_however_often_copies_fail() -> None:
    """Rows that ask for pages elsewhere, in vain, are no load there."""
    case = Case(
        preset="vllm",
        overrides=STEALS,
        rows=tuple(Row(prompt=5, budget=100, output=100) for _ in range(6)),
        engines=2,
        hbm_pages=2000,
        troubles=(("notice", 50_000, 0, 0),),
        advised=False,
    )
    loads = []
    for bad_copies in (0, 1):
        outcome = run(replace(case, bad_copies=bad_copies))
        assert outcome.table.engine.tolist() == [1] * 6
        loads.append([outcome.runtime.cluster.loads.of(engine) for engine in (0, 1)])
    assert loads[0] == loads[1]


def test_an_engine_whose_notice_is_withdrawn_gets_its_share_and_no_more() -> None:
    late = tuple(Row(prompt=5, budget=100, output=100, arrival=900_000) for _ in range(8))
    case = Case(
        preset="vllm",
        overrides={**STEALS, "placement.steal": "false"},
        rows=tuple(Row(prompt=5, budget=100, output=40) for _ in range(20)) + late,
        engines=2,
        hbm_pages=2000,
        seqs=64,
        troubles=(("notice", 10_000, 0, 0), ("back", 800_000, 0, 0)),
    )
    assert run(case, checker=Invariants(case)).table.engine.tolist()[20:].count(0) == 4


def test_rows_that_are_prefilled_elsewhere_leave_no_dead_rows_behind() -> None:
    """A static batch of a noticed engine: its ended rows keep pages until its last row has gone."""
    prompts, budgets = (32, 21, 40, 22, 30, 33), (19, 36, 40, 21, 10, 14)
    outputs = (12, 10, 34, 9, 6, 7)
    case = Case(
        preset="vllm",
        overrides={"recovery.part": "recompute", "batching.part": "static"},
        rows=tuple(
            Row(prompt=prompt, budget=budget, output=output)
            for prompt, budget, output in zip(prompts, budgets, outputs, strict=True)
        ),
        engines=3,
        ranks=3,
        engines_per_node=2,
        hbm_pages=36,
        seqs=64,
        boundary=16,
        copy_ps=3000,
        advised=False,
        troubles=(("notice", 422_970, 29, 50),),
    )
    verify_core(case)


def test_rows_that_ask_a_noticed_engine_for_pages_get_them() -> None:
    """Its own rows are prefilled elsewhere, which makes room for those that it was asked for."""
    numbers = (
        (14, 33, 10),
        (11, 48, 36),
        (59, 1, 1),
        (8, 19, 7),
        (43, 19, 19),
        (4, 54, 32),
        (60, 50, 15),
        (24, 36, 6),
        (37, 54, 1),
    )
    rows = [Row(prompt=one, budget=two, output=three) for one, two, three in numbers]
    rows[2] = replace(rows[2], stages=((7, 2, 30_000), (12, 10, 0)))
    parts = {
        "recovery": "recompute",
        "phase": "mixed",
        "memory": "nothing",
        "order": "longest",
        "admission": "whole-batch",
        "batching": "whole",
        "placement": "least-work",
        "tail": "partition",
    }
    case = Case(
        preset="vllm",
        overrides={f"{slot}.part": part for slot, part in parts.items()},
        rows=tuple(rows),
        engines=4,
        ranks=3,
        roles=("prefill", "prefill", "decode", "decode"),
        hbm_pages=10,
        page=8,
        boundary=16,
        budget=16,
        seqs=64,
        advised=False,
        troubles=(("notice", 442_860, 38, 20),),
        bad_copies=4,
    )
    verify_core(case)


@pytest.mark.parametrize("page", [1, 4])
def test_a_prompt_whose_pass_was_lost_with_its_device_is_not_on_the_host(page: int) -> None:
    """With depth 2 the books are a pass ahead; what a lost pass would have computed is undone,
    and was streamed nowhere."""
    rows = (
        Row(prompt=9, budget=60, output=60),
        Row(prompt=9, budget=60, output=60),
        Row(prompt=18, budget=20, output=9, arrival=200_000),
    )
    case = Case(
        preset="vllm",
        rows=rows,
        engines=2,
        hbm_pages=400,
        host_pages=10_000,
        page=page,
        depth=2,
        overrides={"memory.part": "suspend-most-decoded", "admission.part": "lazy-pages"},
    )
    begun, engine = next(
        (entry.t, action.engine)
        for entry in run(case).entries
        for action in entry.actions
        if isinstance(action, Step) and any(chunk[0] == 2 and chunk[3] for chunk in action.chunks)
    )
    step_ps = 20_000  # longer than what is left of the pass before, shorter than both
    for after in range(0, 2 * step_ps, step_ps // 8):
        lost = replace(case, troubles=(("lost", begun + after, engine, 0),))
        outcome = run(lost, checker=Invariants(lost))
        assert outcome.reasons[2] in ("stop", "length")
        ended = begun + after
        first = outcome.times()[0][2]
        if first < ended:
            continue  # it had its first token before the loss
        copied = [
            action
            for entry in outcome.entries
            for action in entry.actions
            if isinstance(action, act.Copy) and 2 in action.rows
        ]
        assert not copied, (after, copied)
