"""Rows that all run beside an engine that is slow by little or much: nobody waits, so that running
rows must move. The cases of benchmarks/stragglers.py, and random ones."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from straggler_runs import Load, capacity_time_s, run, slow
from straggling_rows import AROUND, cases, loads


@pytest.mark.parametrize(("kind", "seed"), [(0, 0), (1, 1), (2, 0)])
def test_bars_that_hold_only_with_stealing(kind: int, seed: int) -> None:
    found = list(cases(loads(seed, 4, "batchgen")[kind], (1.45,)))
    assert all(case.holds for case in found)
    assert any(case.needs_stealing for case in found)


def test_an_engine_late_by_less_than_the_factor_changes_nothing() -> None:
    load = Load(engines=4, rows=200, seed=1)
    healthy = run(load, watch=False)
    late = run(load, [slow(0.0, 1, 1.04)], watch=False)
    assert healthy.alarms == late.alarms == 0
    assert late.bct_s <= 1.04 * healthy.bct_s


@pytest.mark.parametrize("policy", ["batchgen", "vllm"])
def test_engines_that_are_all_late_by_as_much_gain_nothing(policy: str) -> None:
    """As when the cost model is wrong for all alike: none is faster than another."""
    always: tuple[tuple[str, str], ...] = (("placement.part", "least-work"),)
    load = Load(engines=4, rows=1000, seed=3, policy=policy, overrides=always)
    never = replace(load, overrides=(*always, ("placement.late_factor", "1000000")))
    troubles = [slow(0.0, engine, 1.3) for engine in range(4)]
    assert run(load, troubles, watch=False).bct_s <= 1.002 * run(never, troubles, watch=False).bct_s


def holds(seed: int) -> None:
    """One engine slow by 1.15 to 4 times from some time on, for good or until it heals: 1.05 times
    the work over the capacity that is left, and the longest row. All rows run at once, or hardly
    any wait; what copies cost is within."""
    rng = random.Random(seed)
    engines = rng.choice((4, 8))
    load = Load(
        engines=engines,
        rows=engines * rng.choice((1, 3, 12, 50, 120)),
        seed=seed,
        prompt_tokens=rng.choice((200, 700, 1500)),
        output_tokens=rng.choice((400, 1000, 3000)),
        sigma=rng.choice((0.3, 0.7, 1.2)),
        max_output_tokens=rng.choice((8000, 16000)),
        policy=rng.choice(("batchgen", "vllm")),
    )
    if load.policy == "vllm":
        load = replace(load, overrides=(("placement.part", "least-work"),))
    factor, victim = rng.uniform(1.15, 4), rng.randrange(engines)
    healthy = run(load, watch=False)
    full, less = float(engines), engines - 1 + 1 / factor
    begins_s = rng.choice((0.0, rng.uniform(0, healthy.bct_s)))
    changes = [(0.0, full), (begins_s, less)]
    troubles = [slow(begins_s, victim, factor)]
    if rng.random() < 0.4:
        heals_s = rng.uniform(begins_s, healthy.bct_s)
        troubles.append(slow(heals_s, victim, 1.0))
        changes.append((heals_s, full))
    outcome = run(load, troubles)
    allowed_s = AROUND * capacity_time_s(healthy.busy_s, changes) + healthy.longest_row_s
    assert outcome.bct_s <= allowed_s, (seed, load, factor)
    assert not outcome.idle_while_rows_wait
    assert not outcome.failed_rows


@pytest.mark.parametrize("seed", range(12))
def test_random_loads_and_factors(seed: int) -> None:
    holds(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 150))
def test_random_loads_and_factors_at_length(seed: int) -> None:
    holds(seed)
