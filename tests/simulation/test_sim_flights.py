"""A flight's totals against single passes; slow, lost and returning devices in simulated time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_cases import Case, Row, cases, run
from core_invariants import Invariants
from core_toy import ToyCost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen import events as ev
from batchgen.sequence import Table
from batchgen.sim.flight import Flight, Mirror
from batchgen.step import Step, unroll


@st.composite
def setups(draw: st.DrawFn, *, ranks: int | None = None) -> tuple[Table, list[int], Step, int]:
    """Rows in the middle of decoding or prefilling, and a step about them."""
    ranks = ranks or draw(st.sampled_from((1, 2, 4)))
    num_rows = draw(st.integers(1, 8))
    prompts = [draw(st.integers(1, 30)) for _ in range(num_rows)]
    outputs = [draw(st.integers(2, 40)) for _ in range(num_rows)]
    table = Table(prompts, outputs)
    for row in range(num_rows):
        table.rank[row] = draw(st.integers(0, ranks - 1))
        table.produced[row] = draw(st.integers(1, outputs[row] - 1))
    chunks = []
    if draw(st.booleans()):
        row = num_rows - 1
        table.produced[row] = 0
        size = draw(st.integers(1, prompts[row]))
        last = size == prompts[row]
        chunks.append((row, 0, size, last))
        n = 1 if last else draw(st.integers(1, max(1, (prompts[row] - 1) // size)))
    else:
        n = draw(st.integers(1, 50))
    joined = [row for row in range(num_rows) if table.produced[row]]
    if not joined and not chunks:
        joined = [0]
    until = draw(st.sampled_from(("first", "n")))
    checkpoint = draw(st.sampled_from(("", "host")))
    step = Step(0, 0, draw(st.integers(0, 90)), n, until, joined, [], chunks, checkpoint)
    return table, outputs, step, ranks


def one_pass_ps(table: Table, step: Step, k: int, one: Any, ranks: int) -> int:
    """The toy formula, rank by rank."""
    local = [0] * ranks
    tokens = 0
    stream = ToyCost.CHECKPOINT if step.checkpoint else 0
    for row in one.decodes:
        read = int(table.prompt[row] + table.produced[row]) + k
        cost = ToyCost.DECODE + ToyCost.SAMPLE + ToyCost.CONTEXT * read + stream
        local[table.rank[row]] += cost
        tokens += 1
    for row, start, size, last in one.chunks:
        cost = size * (ToyCost.TOKEN + stream) + ToyCost.READS * start + ToyCost.SAMPLE * last
        local[table.rank[row]] += cost + ToyCost.PAIRS * ((start + size) ** 2 - start**2)
        tokens += size
    return max(local) + ToyCost.FIXED * ranks + ToyCost.SHARED * tokens


@settings(deadline=None, max_examples=150)
@given(setups(), st.sampled_from((500, 1000, 2750)))
def test_totals_are_the_sums_over_single_passes(
    setup: tuple[Table, list[int], Step, int], speed: int
) -> None:
    table, outputs, step, ranks = setup
    lengths = memoryview(np.array(outputs, dtype=np.int32))
    flight = Flight(step, Mirror(table, ranks, lengths), ToyCost(ranks), speed)
    ends: list[int] = []
    finished: dict[int, int] = {}
    walker, gone, clock = unroll(step, []), None, 0
    while True:
        try:
            one = walker.send(gone)  # type: ignore[arg-type]
        except StopIteration:
            break
        k = len(ends)
        clock += one_pass_ps(table, step, k, one, ranks) * speed // 1000
        ends.append(clock)
        gone = [row for row in one.decodes if table.produced[row] + k + 1 == outputs[row]]
        gone += [row for row, _, _, last in one.chunks if last and outputs[row] == 1]
        finished.update(dict.fromkeys(gone, k))
    assert flight.passes == len(ends)
    assert flight.duration_ps == ends[-1]
    assert dict(flight.finishes) == finished
    assert flight.ends_ps == [ends[offset] for _, offset in flight.finishes]


@settings(deadline=None, max_examples=100)
@given(setups(ranks=1))
def test_the_closed_form_equals_the_arrays(setup: tuple[Table, list[int], Step, int]) -> None:
    table, outputs, step, _ = setup
    lengths = memoryview(np.array(outputs, dtype=np.int32))
    flight = Flight(step, Mirror(table, 1, lengths), ToyCost(), 1000)
    assert flight.duration_ps == int(flight.pass_times().sum())


@settings(deadline=None, max_examples=100)
@given(setups(), st.integers(0, 400_000))
def test_a_cut_ends_at_the_next_pass_boundary(
    setup: tuple[Table, list[int], Step, int], at: int
) -> None:
    table, outputs, step, ranks = setup
    lengths = memoryview(np.array(outputs, dtype=np.int32))
    whole = Flight(step, Mirror(table, ranks, lengths), ToyCost(ranks), 1000)
    flight = Flight(step, Mirror(table, ranks, lengths), ToyCost(ranks), 1000)
    ends = np.cumsum(whole.pass_times()).tolist()
    at = min(at, ends[-1])
    passes = next(k for k, end in enumerate(ends, start=1) if end >= at)
    assert flight.shorten(at) == (passes < whole.passes)
    assert flight.passes == passes
    assert flight.duration_ps == ends[passes - 1]
    assert flight.finishes == [pair for pair in whole.finishes if pair[1] < passes]
    flight.settle()
    left = flight.mirror.pop_until(10**9)
    assert sorted(row for _, row in left) == sorted(
        set(step.joined) - {row for row, _ in flight.finishes}
    )


def test_a_slow_device_takes_that_much_longer() -> None:
    rows = (Row(prompt=5, budget=40, output=40),) * 4
    plain = run(Case(preset="static", rows=rows))
    slow = run(Case(preset="static", rows=rows, troubles=(("slow", 0, 0, 4),)))  # x 2.3
    assert slow.passes() == plain.passes()
    done = [entry.event for entry in plain.entries if type(entry.event) is ev.StepDone]
    expected = sum(event.duration_ps for event in done) * 2.3
    assert max(slow.times()[1]) == pytest.approx(expected, abs=100)  # each pass is rounded down


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(cases(prefix=False), st.integers(0, 1_500_000), st.booleans())
def test_a_lost_device_loses_no_row(case: Case, at: int, back: bool) -> None:
    """Others take over, or the rows wait until a device returns."""
    whole = run(case)
    troubles = [("lost", at, engine, 0) for engine in range(1, case.engines)]
    if back:
        troubles += [("lost", at, 0, 0), ("back", at + 3_000_000, 0, 0)]
    broken = Case(**{**{n: getattr(case, n) for n in FIELDS}, "troubles": tuple(troubles)})
    outcome = run(broken, checker=Invariants(broken))
    assert outcome.reasons == whole.reasons


FIELDS = tuple(Case.__dataclass_fields__)


def test_completed_passes_of_a_lost_device_count() -> None:
    rows = (Row(prompt=4, budget=50, output=50),)
    case = Case(preset="vllm", rows=rows, engines=2, troubles=(("lost", 60_000, 0, 0),))
    outcome = run(case)
    assert outcome.table.recomputed[0] > 0
    decoded = sum(len(decodes) for one in outcome.passes() for _, decodes, _, _ in one)
    assert decoded == 50 - 2  # one token came from the prompt, one from computing it again


def test_rows_fail_by_name_when_no_device_returns() -> None:
    case = Case(
        preset="vllm",
        rows=(Row(prompt=4, budget=50, output=50),) * 2,
        troubles=(("lost", 9, 0, 0),),
    )
    outcome = run(case, checker=Invariants(case))
    assert outcome.reasons == {0: "no_device", 1: "no_device"}
    assert outcome.times()[1] == [9, 9]
