"""Slow, healed and lost engines: the bars of benchmarks/stragglers.py on small random loads."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from batchgen.sim.faults import Fault
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.trace.devices.compose import compose
from batchgen.trace.devices.events import Trouble
from batchgen.units import to_ps

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "stragglers_bars", ROOT / "benchmarks" / "stragglers.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = _module()


def some_load(seed: int, **fixed: object) -> object:
    """Few or many rows, light or heavy tails, so that rows wait at the begin, or long, or never."""
    rng = random.Random(seed)
    drawn: dict[str, object] = {
        "rows": rng.choice((1000, 2000, 4000)),
        "seed": seed,
        "prompt_tokens": rng.choice((200, 1500)),
        "output_tokens": rng.choice((400, 1200)),
        "sigma": rng.choice((0.5, 1.2)),
    }
    return bench.Load(**{**drawn, **fixed})


@pytest.mark.parametrize("seed", range(4))
def test_all_bars_hold(seed: int) -> None:
    missed = [bar for bar in bench.bars(some_load(seed)) if not bar.holds]
    assert not missed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 40))
def test_all_bars_hold_at_length(seed: int) -> None:
    missed = [bar for bar in bench.bars(some_load(seed)) if not bar.holds]
    assert not missed


@pytest.mark.parametrize("steal", [True, False])
def test_engines_that_idle_beside_suspended_rows_are_seen(steal: bool) -> None:
    """Rows of `batchgen` that have no pages lie on the host, not in a lane. Nobody takes them where
    stealing is off, so that the bar of idle engines can be missed."""
    overrides = () if steal else (("placement.steal", "false"),)
    load = bench.Load(engines=4, rows=2000, overrides=overrides)
    outcome = bench.run(load, [Fault(0, "slow", 0, 6000)])
    assert bool(outcome.idle_while_rows_wait) != steal


def test_capacity_is_that_of_a_plain_sum() -> None:
    assert bench.capacity_time_s(10, [(0, 2)]) == 5
    assert bench.capacity_time_s(10, [(0, 2), (3, 4)]) == 4


@pytest.mark.parametrize("seed", range(3))
def test_accidents_of_healthy_engines_are_no_slowness(seed: int) -> None:
    """Heavy tails in lengths and in durations: of all passes that are timed some are late, up to 20
    times, and less than one alarm comes for a hundred of them. An engine at half speed is found."""
    load = bench.Load(rows=1500, seed=seed, engines=8, sigma=1.3)
    troubles = bench.accidents(load, bench.run(load, watch=False).bct_s)
    healthy = bench.run(load, compose(troubles, load.engines, 1))
    assert healthy.timed > 300
    assert healthy.alarms < 0.01 * healthy.timed
    troubles.append(Trouble(0, "slow", gpu=seed, factor=2000))
    slow = bench.run(load, compose(troubles, load.engines, 1))
    assert slow.alarms >= 1
    assert slow.failed_rows == 0


def test_what_nobody_knows_of_outputs_does_not_cost_against_turns() -> None:
    """Prompts said nothing of outputs, and whoever had prefilled its short ones took more."""
    trace = str(ROOT / "traces" / "servegen-deepseek-r1.jsonl.gz")
    ends = {
        policy: max(simulate(SimJob(trace=trace, policy=policy)).rows["end_ps"])
        for policy in ("vllm", "batchgen")
    }
    assert ends["batchgen"] < 0.9 * ends["vllm"]


@pytest.mark.parametrize(
    ("trace", "fixed"),
    [
        ("vidur-arxiv-summarization", {}),
        ("servegen-deepseek-r1", {}),
        ("servegen-deepseek-r1", {"model": "llama-3.1-8b", "gpu": "h100", "gpus": 16}),
    ],
)
def test_healthy_engines_gain_nothing_by_stealing_and_lose_nothing(
    trace: str, fixed: dict[str, object]
) -> None:
    """Engines that come to their boundaries together took what others would have begun in the same
    instant, and half of what one had on its host: 4 % later, and the first engine had a third more
    rows than the last."""
    path = str(ROOT / "traces" / f"{trace}.jsonl.gz")
    ends = [
        max(simulate(SimJob(trace=path, overrides=overrides, **fixed)).rows["end_ps"])  # type: ignore[arg-type]
        for overrides in ((), (("placement.steal", "false"),))
    ]
    assert ends[0] < 1.01 * ends[1]


def test_rows_of_a_slow_engine_are_shared_among_all_that_are_hungry() -> None:
    """The first engine took until both had the same, and what asked there could go nowhere else."""
    load = bench.Load(
        engines=4, rows=8000, seed=5, prompt_tokens=700, output_tokens=1200, max_output_tokens=8000
    )
    healthy = bench.run(load, watch=False).bct_s
    spell = [Fault(to_ps(healthy / 4), "slow", 1, 4000), Fault(to_ps(healthy / 2), "slow", 1, 1000)]
    # Three quarters of an engine of four are missing for a quarter of the time.
    assert bench.run(load, spell, watch=False).bct_s < 1.1 * healthy
