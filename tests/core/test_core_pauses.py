"""Prompts first in an engine of several ranks: a rank pauses for its own prompts alone."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from core_cases import Case, Row, random_case, run
from core_sim import simulate_case
from core_verify import verify_backends, verify_core

from batchgen.sequence import Table
from batchgen.sim.passtimes import FAR
from batchgen.sim.rowbook import RowBook
from batchgen.sim.running import RunningSet
from batchgen.step import Step

# In turns over two ranks: 0, 2 and 4 on rank 0, 1 and 3 on rank 1. Row 4 finds a seat when 0 ends.
ROWS = (
    Row(prompt=2, budget=3, output=3),
    Row(prompt=2, budget=6, output=6),
    Row(prompt=2, budget=6, output=6),
    Row(prompt=2, budget=6, output=6),
    Row(prompt=8, budget=2, output=2),
)
CASE = Case(
    preset="vllm",
    overrides={"phase.part": "prefill-first"},
    rows=ROWS,
    ranks=2,
    seqs=2,
    budget=4,
    page=4,
    hbm_pages=40,
)
# (decodes, prompt pieces, rows that end) of each pass.
WORKED: list[tuple[list[int], list[tuple[int, int, int, bool]], list[int]]] = [
    ([], [(0, 0, 2, True), (1, 0, 2, True), (2, 0, 2, True), (3, 0, 2, True)], []),
    ([0, 1, 2, 3], [], []),
    ([0, 1, 2, 3], [], [0]),
    ([1, 3], [(4, 0, 4, False)], []),  # row 2 pauses: its rank prefills
    ([1, 3], [(4, 4, 4, True)], []),
    ([1, 2, 3, 4], [], [1, 3, 4]),
    ([2], [], []),
    ([2], [], [2]),
]


def shapes(passes: list[tuple[Any, ...]]) -> list[tuple[list[int], Any, list[int]]]:
    """Passes without their numbers."""
    return [(decodes, chunks, finished) for _, decodes, chunks, finished in passes]


def test_a_worked_example() -> None:
    outcome = run(CASE)
    assert shapes(outcome.passes()[0]) == WORKED
    assert outcome.table.produced.tolist() == [row.output for row in ROWS]


def test_a_worked_example_with_a_pass_in_flight() -> None:
    """What ended is known one pass later, when the next has begun: row 4 comes a pass later."""
    outcome = run(dataclasses.replace(CASE, depth=2))
    decodes = [one[0] for one in shapes(outcome.passes()[0])]
    all_four = [0, 1, 2, 3]
    assert decodes[:6] == [[], all_four, all_four, all_four, [1, 3], [1, 3]]
    assert decodes[6:8] == [[1, 2, 3, 4], [2, 4]]  # 1 and 3 as ghosts, then 4


def test_steps_name_the_ranks_that_pause() -> None:
    steps = [
        action
        for entry in run(CASE).walker.entries
        for action in entry.actions
        if isinstance(action, Step)
    ]
    named = [(step.decode, step.paused, step.n) for step in steps if step.chunks]
    assert named == [(False, [], 1), (True, [0], 1), (True, [0], 1)]


def test_passes_take_the_slowest_rank() -> None:
    """One rank reads the contexts of its decodes while the other computes its prompt."""
    simulation, _ = simulate_case(CASE)
    cost = CASE.advisor().home
    loads = [  # rows 1 and 3 read 5 tokens each, then 6
        [(0, 0, 4, 16, 0, 0, 0), (2, 10, 0, 0, 0, 2, 0)],
        [(0, 0, 4, 48, 4, 1, 0), (2, 12, 0, 0, 0, 2, 0)],
    ]
    recorder = simulation.recorder
    took = int(recorder.first_token_ps[4]) - int(recorder.end_ps[0])
    assert took == sum(cost.time_ps(one) for one in loads)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_example_holds_what_all_cases_hold(depth: int) -> None:
    case = dataclasses.replace(CASE, depth=depth)
    verify_core(case)
    verify_backends(case)


@pytest.mark.parametrize("least_free", ["0.3", "0.6"])
def test_long_steps_wait_for_room_as_passes_do(least_free: str) -> None:
    """`least_free` is a question about the rank alone, and time alone never makes it say yes."""
    composition = ("sglang", {"phase.least_free": least_free})
    for seed in range(40):
        case = random_case(random.Random(seed), composition)
        verify_core(dataclasses.replace(case, ranks=2 + seed % 2))


def test_an_end_on_a_rank_that_was_left_is_no_end() -> None:
    """Ranks count by clocks of their own: the same number means another pass on each."""
    table = Table([4, 4], [9, 9])
    running = RunningSet(0, RowBook(table, np.array([9, 9])), 0)
    running.empty(2, detailed=False)
    running.part()
    running.k = 10
    running.add(0, 1, 10)
    assert running.next_finish_of_all([]) == 17
    running.remove(0)
    running.fall_behind([1], 3)  # for which rank 1 pauses
    running.k, table.v_rank[0] = 13, 1
    running.add(0, 1, 13)  # it ends when 8 more passes have run, as it would have on rank 0
    assert running.next_finish_of_all([]) == 20
    assert running.next_finish_of_all([1]) == FAR
    assert running.pop_all_until(30, []) == [(20, 0)]
