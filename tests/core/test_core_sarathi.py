"""Preset `sarathi` beside algorithm 3 of Sarathi-Serve (OSDI 2024): decodes first, then the prompt
that is under way, then new ones, cut to what the budget of tokens leaves."""

from __future__ import annotations

import random

import pytest
from core_cases import Case, Row, run

Pass = tuple[list[int], list[tuple[int, int, int, bool]]]
"""Rows that decode, and chunks: row, start, tokens, whether its prompt is complete with them."""


def passes_of(rows: tuple[Row, ...], budget: int, seqs: int) -> list[Pass]:
    case = Case(preset="sarathi", rows=rows, hbm_pages=4000, budget=budget, seqs=seqs)
    return [
        (sorted(decodes), [(row, start, size, bool(last)) for row, start, size, last in chunks])
        for _, decodes, chunks, _ in run(case).passes()[0]
    ]


def algorithm_3(rows: tuple[Row, ...], budget: int, seqs: int) -> list[Pass]:
    """With room for the KV of all rows."""
    waiting, running = list(range(len(rows))), list[int]()
    done, produced = [0] * len(rows), [0] * len(rows)
    found: list[Pass] = []
    while waiting or running:
        left = budget
        decodes = [row for row in running if done[row] == rows[row].prompt]
        left -= len(decodes)
        chunks = []
        begun = [row for row in running if done[row] < rows[row].prompt]
        for row in begun:
            size = min(left, rows[row].prompt - done[row])
            if size:
                chunks.append((row, done[row], size))
            left -= size
        while waiting and left and len(running) < seqs:
            row = waiting.pop(0)
            running.append(row)
            chunks.append((row, 0, min(left, rows[row].prompt)))
            left -= chunks[-1][2]
        for row, _, size in chunks:
            done[row] += size
        full = [(*chunk, done[chunk[0]] == rows[chunk[0]].prompt) for chunk in chunks]
        for row in [*decodes, *(row for row, _, _, last in full if last)]:
            produced[row] += 1
            if produced[row] == rows[row].output:
                running.remove(row)
        found.append((sorted(decodes), full))
    return found


def test_the_worked_example() -> None:
    """Budget 8. Row 1 has what row 0's prompt leaves; then decodes take their tokens first."""
    rows = (
        Row(prompt=10, budget=4, output=3),
        Row(prompt=9, budget=4, output=2),
        Row(prompt=4, budget=4, output=3),
    )
    assert passes_of(rows, budget=8, seqs=16) == [
        ([], [(0, 0, 8, False)]),
        ([], [(0, 8, 2, True), (1, 0, 6, False)]),
        ([0], [(1, 6, 3, True), (2, 0, 4, True)]),
        ([0, 1, 2], []),
        ([2], []),
    ]


@pytest.mark.parametrize("seed", range(30))
def test_random_loads_run_as_the_algorithm_says(seed: int) -> None:
    rng = random.Random(seed)
    budget, seqs = rng.randint(4, 40), rng.randint(1, 12)
    rows = tuple(
        Row(prompt=rng.randint(1, 60), budget=20, output=rng.randint(1, 20)) for _ in range(20)
    )
    found = passes_of(rows, budget, min(seqs, budget))
    assert found == algorithm_3(rows, budget, min(seqs, budget))
    for decodes, chunks in found:
        assert len(decodes) + sum(size for _, _, size, _ in chunks) <= budget
