"""How long a job still takes: exact where it must be, right on average for rows at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.job import load as load_module
from batchgen.job.lengths import slope_of, stops_of
from batchgen.job.load import Begun, Load, load_of, places_of
from batchgen.job.pace import Pace, left_s
from batchgen.sequence import Status, Table


def begun(
    produced: list[int], budget: list[int], over: list[bool], prompt: list[int] | None = None
) -> Begun:
    p, b, o = np.array(produced), np.array(budget), np.array(over, dtype=bool)
    return Begun(
        prompt=np.array(prompt or [10] * len(produced)),
        produced=p,
        budget=b,
        is_over=o,
        stopped=o & (p < b),
        weight=np.ones(len(p), dtype=np.int64),
    )


def load(
    some: Begun,
    fresh: Sequence[int] = (),
    prompt_left: int = 0,
    waits: bool = False,
    prompt_done: int = 0,
) -> Load:
    return Load(
        begun=some,
        fresh_prompt=np.full(len(fresh), 10),
        fresh_budget=np.array(fresh, dtype=np.int64),
        fresh_counts=np.ones(len(fresh), dtype=np.int64),
        prompt_left=prompt_left,
        prompt_done=prompt_done,
        waits=waits,
    )


NOTHING = begun([], [], [])


def pace_of(fixed_s: float, decode_s: float, chunk_s: float, seats: int = 16) -> Pace:
    """Of passes of all kinds that take exactly that."""
    pace = Pace()
    rng = np.random.default_rng(1)
    decodes = rng.integers(1, seats + 1, 60)
    decodes[0] = seats
    chunks = rng.integers(0, 100, 60) * rng.integers(0, 2, 60)
    seconds = fixed_s + decodes * decode_s + chunks * chunk_s
    for part in (slice(0, 20), slice(20, 60)):
        pace.tell(decodes[part].tolist(), chunks[part].tolist(), seconds[part].tolist())
    return pace


@pytest.mark.parametrize("want", [(0.02, 0.001, 0.0001), (0.0, 0.001, 0.0), (0.05, 0.0, 0.0002)])
def test_the_time_of_passes_is_found_again(want: tuple[float, float, float]) -> None:
    found = pace_of(*want).pass_time()
    assert found is not None
    got = (found.fixed_s, found.per_decode_s, found.per_chunk_token_s)
    assert got == pytest.approx(want, rel=0.1, abs=1e-4)


def test_passes_that_are_all_alike_are_of_a_fixed_time() -> None:
    pace = Pace()
    pace.tell([8] * 20, [0] * 20, [0.04] * 20)
    found = pace.pass_time()
    assert found is not None
    assert found.fixed_s + 8 * found.per_decode_s == pytest.approx(0.04, rel=0.01)


def test_nothing_is_said_before_rows_have_decoded() -> None:
    pace = Pace()
    assert left_s(load(NOTHING, [5]), pace) is None
    pace.tell([0, 0, 0, 1], [99, 99, 99, 0], [0.1] * 4)
    assert left_s(load(NOTHING, [5]), pace) is None
    assert left_s(load(NOTHING), pace_of(0.01, 0, 0)) == (0.0, 0.0)


def test_rows_that_go_to_their_budgets_take_what_the_arithmetic_says() -> None:
    """400 ended at their budget and none stopped: what is left goes there too."""
    pace = pace_of(0.02, 0.0, 0.0, seats=4)
    ended = begun([50] * 400 + [10] * 4, [50] * 404, [True] * 400 + [False] * 4)
    found = left_s(load(ended), pace)
    assert found is not None
    # The tail: 40 passes more for the four that run, whatever tokens a second there have been.
    assert found[1] == pytest.approx(40 * 0.02, rel=0.05)
    # "no stop in so many tokens" leaves a little room below.
    assert 0.85 * found[1] < found[0] <= found[1]


@pytest.mark.parametrize("part", [0.1, 0.5, 1.0, 3.0])
def test_prompts_that_share_prefixes_cost_what_they_did_so_far(part: float) -> None:
    """part: of the prompts of rows that are done, what was computed; above 1, some of it twice."""
    pace = Pace()
    chunks = [100, 0] * 20
    pace.tell([1] * 40, chunks, [0.01 + tokens * 0.001 for tokens in chunks])
    ended = begun([1] * 40, [1] * 40, [True] * 40)
    found = left_s(load(ended, [1], 500, prompt_done=round(sum(chunks) / part)), pace)
    assert found is not None
    assert found[0] == pytest.approx(0.01 + min(part, 1.0) * 500 * 0.001, rel=0.02)


def test_the_tail_counts_by_its_longest_row_not_by_tokens() -> None:
    pace = pace_of(0.02, 0.0001, 0.0, seats=64)
    ended = begun([100] * 500, [100] * 500, [True] * 500)
    steady = left_s(load(ended, [100] * 64, waits=False), pace)
    one = begun([100] * 500 + [0], [100] * 500 + [6400], [True] * 500 + [False])
    long = left_s(load(one), pace)
    assert steady is not None
    assert long is not None
    assert long[1] > 20 * steady[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([20.0, 100.0, 400.0]), st.integers(1, 300))
def test_expected_tokens_hold_for_rows_that_stop_at_random(seed: int, mean: float, at: int) -> None:
    """The range of what 300 unfinished rows still produce has what they do, mostly: rows of
    exponential lengths, looked at while they run."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(np.maximum(rng.exponential(mean, 2000).round(), 1), 2048).astype(np.int64)
    ended = lengths[:1400]
    running = lengths[1400:]
    running = running[running > at][:300]
    produced = np.concatenate((ended, np.full(len(running), at)))
    over = np.arange(len(produced)) < len(ended)
    weight = np.ones(len(produced), dtype=np.int64)
    soon, late = stops_of(produced.astype(float), over & (produced < 2048), weight, 2048.0)
    if len(running) < 30:
        return
    have, most = np.full(len(running), float(at)), np.full(len(running), 2048.0)
    units = np.ones(len(running))
    least, greatest = (one.expected(have, most, units).sum() for one in (soon, late))
    true = float((running - at).sum())
    # Four standard deviations of the mean of an exponential time.
    slack = 1 + 4 / math.sqrt(len(running))
    assert least / slack <= true <= greatest * slack


def test_long_rows_are_found_where_lengths_are_in_proportion_to_prompts() -> None:
    rng = np.random.default_rng(0)
    prompt = rng.integers(20, 400, 300)
    produced = np.maximum((prompt * rng.uniform(0.9, 1.1, 300)).astype(np.int64), 1)
    assert slope_of(prompt, produced) == pytest.approx(1.0, abs=0.05)
    assert slope_of(prompt, rng.integers(1, 500, 300)) == 0.0
    assert slope_of(prompt[:5], produced[:5]) == 0.0
    assert slope_of(np.full(300, 7), produced) == 0.0
    # The longest prompts have run: what is left is short, and is known to be.
    order = np.argsort(-prompt)
    ran, rest = order[:200], order[200:]
    some = begun(produced[ran].tolist(), [4096] * 200, [True] * 200, prompt=prompt[ran].tolist())
    left = Load(
        begun=some,
        fresh_prompt=prompt[rest],
        fresh_budget=np.full(100, 4096),
        fresh_counts=np.ones(100, dtype=np.int64),
        prompt_left=0,
        prompt_done=int(prompt[ran].sum()),
        waits=True,
    )
    found = left_s(left, pace_of(0.0, 0.001, 0.0))
    assert found is not None
    true = produced[rest].sum() * 0.001
    assert 0.7 * true < found[0] < 1.3 * true
    assert found[1] < 2 * true


# -- the table ------------------------------------------------------------------------------------


def table_of_all() -> Table:
    """A row in each status, with what it has of tokens."""
    table = Table([30] * len(Status), [20] * len(Status))
    for number, one in enumerate(Status):
        table.status[number] = one
    table.produced[Status.DONE] = 7
    table.produced[Status.FAILED] = 3
    table.offset[Status.DECODE] = 30 - 4  # at clock 10: 36 computed, 7 produced
    table.produced[Status.HOST], table.host_valid[Status.HOST] = 5, 34
    table.computed[Status.PREFILL] = 12
    return table


def test_what_a_table_says() -> None:
    table = table_of_all()
    places = places_of(table)
    assert (places.running, places.ended, places.prefilling) == (5, 2, 1)
    assert places.running + places.ended + places.waiting == len(table)
    found = load_of(table, 10)
    assert found.begun.produced.tolist() == [7, 3, 7, 5]
    assert found.begun.is_over.tolist() == [True, True, False, False]
    assert found.begun.stopped.tolist() == [True, False, False, False]
    assert found.fresh_counts.sum() == len(Status) - 4
    # Eight rows without any KV but for 12 tokens of the one that prefills; the host's lacks one.
    assert found.prompt_left == 30 * 10 - 12 + 1
    assert found.prompt_done == 3 * 30  # of the one that decodes, and the two that have ended
    before = {name: getattr(table, name).copy() for name in ("status", "produced", "computed")}
    load_of(table, 11)
    assert all((getattr(table, name) == value).all() for name, value in before.items())


def test_a_long_table_is_looked_at_by_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table([10] * 5000, [64] * 5000)
    table.status[:2000], table.produced[:2000] = Status.DONE, 9
    table.status[2000:] = Status.WAITING
    whole = load_of(table, 0)
    monkeypatch.setattr(load_module, "MOST", 300)
    some = load_of(table, 0)
    assert len(some.begun.produced) <= 300
    assert some.begun.weight.sum() == pytest.approx(2000, rel=0.01)
    assert some.fresh_counts.sum() == pytest.approx(3000, rel=0.01)
    assert some.prompt_left == whole.prompt_left
    pace = pace_of(0.01, 0.001, 0.0)
    assert left_s(some, pace) == pytest.approx(left_s(whole, pace), rel=0.02)


def test_phases() -> None:
    table = Table([10] * 4, [8] * 4)
    table.status[:] = [Status.PREFILL, Status.DECODE, Status.WAITING, Status.WAITING]
    assert places_of(table).phase == "fill"
    table.status[:] = [Status.DECODE, Status.DONE, Status.DECODE, Status.WAITING]
    assert places_of(table).phase == "steady"
    table.status[:] = [Status.DECODE, Status.DONE, Status.DECODE, Status.DONE]
    assert places_of(table).phase == "tail"
    assert places_of(Table([], [])).phase == "tail"
