"""Placement by what is left to do: outputs count, known or not."""

from __future__ import annotations

import random

import pytest

from batchgen.policy.placement import LeastWork, remaining_tokens
from batchgen.runtime.cluster.loads import Loads
from batchgen.runtime.engine.machine import EngineMachine
from batchgen.sequence import Table


def placed(table: Table, num_engines: int) -> list[list[int]]:
    """Rows per engine, for engines of one rank."""

    class Cluster:
        pass

    cluster, engines = Cluster(), []
    for index in range(num_engines):
        engine = EngineMachine.__new__(EngineMachine)
        engine.id = index
        engines.append(engine)
    cluster.table, cluster.loads = table, Loads([1] * num_engines)  # type: ignore[attr-defined]
    cluster.loads.takers.admit(engines)  # type: ignore[attr-defined]
    rows: list[list[int]] = [[] for _ in engines]
    for row, (engine_id, _) in LeastWork().place(cluster, range(len(table))):  # type: ignore[arg-type]
        rows[engine_id].append(row)
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_of_unknown_outputs_every_engine_gets_as_many_rows(seed: int) -> None:
    """And nearly as many prompt tokens, as far as equal numbers of rows allow."""
    rng = random.Random(seed)
    count, engines = rng.randrange(1, 200), rng.randrange(1, 12)
    prompts = [rng.choice((rng.randrange(1, 50), rng.randrange(1, 4000))) for _ in range(count)]
    rows = placed(Table(prompts, [100_000] * count), engines)
    sizes = [len(some) for some in rows]
    assert max(sizes) - min(sizes) <= 1
    full = [sum(prompts[row] for row in some) for some in rows if len(some) == max(sizes)]
    assert max(full) - min(full) <= 2 * max(prompts)  # work is a little more than its tokens


@pytest.mark.parametrize("seed", range(20))
def test_predicted_outputs_are_balanced(seed: int) -> None:
    rng = random.Random(seed)
    count, engines = rng.randrange(1, 200), rng.randrange(1, 12)
    table = Table([10] * count, [100_000] * count)
    table.predicted[:] = [int(20 * rng.paretovariate(1.1)) + 1 for _ in range(count)]
    works = [sum(int(table.predicted[row]) + 10 for row in some) for some in placed(table, engines)]
    longest = int(table.predicted.max()) + 10
    assert max(works) - min(works) <= longest  # of any list schedule


def test_what_is_left_of_a_row() -> None:
    """(budget, predicted, produced) -> tokens; counted down, and as much again once passed."""
    for budget, predicted, produced, left in (
        (100, 0, 0, 100),
        (100, 0, 30, 70),
        (100, 50, 0, 50),
        (100, 50, 30, 20),
        (100, 50, 60, 40),
        (1000, 50, 60, 60),
    ):
        table = Table([5], [budget])
        table.predicted[0], table.produced[0] = predicted, produced
        assert remaining_tokens(table, 0) == left
