"""A flight's closed forms against its arrays; slow, lost and returning devices in simulated time.

(The whole simulator is held against a plain walk, pass by pass, in tests/core.)
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from core_cases import Case, Row, random_case, run, swaps
from core_invariants import Invariants
from core_sim import simulate_case

from batchgen.check.toy import ToyCost
from batchgen.sequence import Table
from batchgen.sim.flight import Flight
from batchgen.sim.rowbook import RowBook
from batchgen.step import Chunk, Step


def chunks_of(rng: random.Random, table: Table, first: int) -> list[Chunk]:
    """Prompt pieces of the rows from `first` on."""
    return [(row, rng.randint(0, 40), rng.randint(1, 9), False) for row in range(first, len(table))]


def flight_of(rng: random.Random, *, ranks: int, chunks: int = 0) -> Flight:
    """A flight with a launched step of rows in the middle of decoding, on `ranks` ranks; `chunks`
    further rows have prompt pieces in it."""
    count = rng.randint(1, 9)
    outputs = [rng.randint(2, 60) for _ in range(count + chunks)]
    table = Table([rng.randint(1, 30) for _ in outputs], outputs)
    for row in range(count, len(outputs)):
        table.v_rank[row] = rng.randrange(ranks)
    for row in range(count):
        table.v_rank[row] = rng.randrange(ranks)
        table.v_produced[row] = rng.randint(1, outputs[row] - 1)
    lag = rng.randint(0, 1)
    flight = Flight(0, RowBook(table, np.array(outputs)), ToyCost(ranks), lag)
    flight.k = flight.q = rng.randint(0, 90)
    pieces = chunks_of(rng, table, count) if chunks else []
    busy = sorted({table.v_rank[row] for row, *_ in pieces})
    step = Step(
        0,
        flight.q,
        0,
        rng.randint(1, 80),
        rng.choice(("first", "n", "all")),
        True,
        list(range(count)),
        [],
        pieces,
        rng.choice(("", "host")),
        paused=busy if len(busy) < ranks and rng.random() < 0.5 else [],
    )
    flight.launch(step, rng.randint(0, 1000))
    return flight


def test_closed_forms_equal_the_arrays() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        flight = flight_of(rng, ranks=rng.choice((1, 1, 3)), chunks=rng.choice((0, 0, 1, 3)))
        assert flight.step is not None
        ends = np.cumsum(flight.times.pass_times(flight.step, flight.passes)).tolist()
        assert [flight.elapsed(count) for count in range(1, flight.passes + 1)] == ends
        assert flight.end_ps - flight.begin_ps == ends[-1]


def test_a_cut_ends_with_the_first_report_that_is_not_in_the_past() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        flight = flight_of(rng, ranks=rng.choice((1, 2, 4)))
        whole = [flight.begin_ps + flight.elapsed(n) for n in range(flight.passes + 1)]
        at = rng.randint(flight.begin_ps + 1, whole[-1])
        reports = [whole[count - flight.lag] for count in range(1, flight.passes + 1)]
        wanted = next((n for n, report in enumerate(reports, 1) if report >= at), flight.passes)
        before = flight.passes
        assert flight.cut(at, after=False) == (wanted < before)
        assert flight.passes == wanted
        assert flight.end_ps == whole[wanted]


def test_a_slow_device_takes_that_much_longer() -> None:
    rows = (Row(prompt=5, budget=40, output=40),) * 4
    plain = run(Case(preset="orca", rows=rows))
    slow = run(Case(preset="orca", rows=rows, troubles=(("slow", 0, 0, 4),)))  # x 2.3
    assert slow.passes() == plain.passes()
    expected = max(plain.times()[1]) * 2.3
    assert max(slow.times()[1]) == pytest.approx(expected, abs=100)  # each pass is rounded down


def test_a_lost_device_loses_no_row() -> None:
    """Others take over, or the rows wait until a device returns."""
    for seed in range(60):
        rng = random.Random(seed)
        case = random_case(rng, rng.choice(swaps()), kinds=())
        at, last = rng.randint(0, 1_500_000), case.engines - 1
        whole = run(case)
        troubles = [("lost", at, engine, 0) for engine in range(last)]
        troubles += [("lost", at, last, 0), ("back", at + 3_000_000, last, 0)]
        troubles += [("back", at + 4_000_000, engine, 0) for engine in range(last)]
        broken = replace(case, troubles=tuple(troubles))
        for outcome in (
            run(broken, checker=Invariants(broken)).reasons,
            simulate_case(broken)[0].recorder.reasons if not case.bad_copies else whole.reasons,
        ):
            assert outcome == whole.reasons


def test_completed_passes_of_a_lost_device_count() -> None:
    rows = (Row(prompt=4, budget=50, output=50),)
    case = Case(preset="vllm", rows=rows, engines=2, troubles=(("lost", 60_000, 0, 0),))
    outcome = run(case)
    assert outcome.table.recomputed[0] > 0
    decoded = sum(len(decodes) for one in outcome.passes() for _, decodes, _, _ in one)
    assert decoded == 50 - 2  # one token came from the prompt, one from computing it again


def test_rows_fail_by_name_when_no_device_returns() -> None:
    rows = (Row(prompt=4, budget=50, output=50),) * 2
    case = Case(preset="vllm", rows=rows, troubles=(("lost", 9, 0, 0),))
    outcome = run(case, checker=Invariants(case))
    assert outcome.reasons == {0: "no_device", 1: "no_device"}
    assert outcome.times()[1] == [9, 9]
