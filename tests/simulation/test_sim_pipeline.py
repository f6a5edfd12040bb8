"""Pipelines in simulated time: oracles, a plain walk pass by pass, any length of steps, faults."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_cases import Case, Row, random_case, swaps
from core_verify import fails
from pipe_walker import EvenToy, PipeWalker, even_pipeline, plain, simulated, toy_pipeline

from batchgen import events as ev
from batchgen.check.loads import Composition
from batchgen.check.shrink import smallest
from batchgen.log import encode
from batchgen.report import metrics, series
from batchgen.report.record import RunRecord, stage_column
from batchgen.report.rundir import load_run, write_run
from batchgen.sim.cluster import Simulation
from batchgen.sim.run import simulate
from batchgen.sim.setup import set_up
from batchgen.simjob import SimJob
from batchgen.trace.schema import load

TRACE = Path(__file__).parents[2] / "traces" / "vidur-arxiv-summarization.jsonl.gz"
WEIGHTS = ((1000, 1000), (1000, 1500), (2000, 700), (1000, 1000, 1300), (800, 800, 800, 800))
COLUMNS = ("status", "engine", "produced", "preemptions", "recomputed", "suspensions", "migrations")


def decoding(count: int, stages: int, output: int = 40) -> Case:
    """So many rows of one prompt token, each in a batch of its own."""
    rows = (Row(prompt=1, budget=output, output=output),) * count
    return Case(preset="vllm", rows=rows, engines=stages, advised=False)


def even(case: Case) -> Simulation:
    """On one pipeline of equal stages without any time between them."""
    return simulated(case, (), pipeline=even_pipeline(case.engines))[0]


def passes_of(output: int) -> list[int]:
    """What each pass of such a row takes in one even stage."""
    toy = EvenToy()
    prompt = toy.pass_one_ps(0, 0, 1, 1, 0, 1)
    return [prompt, *(toy.pass_one_ps(1, k, samples=1) for k in range(2, output + 1))]


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_lone_row_takes_all_stages_and_leaves_them_idle(stages: int) -> None:
    simulation, each = even(decoding(1, stages)), passes_of(40)
    assert simulation.recorder.end_ps.tolist() == [stages * sum(each)]
    assert simulation.passes == len(each)
    # Each stage works one part in S, and is idle for the rest.
    assert stage_busy(simulation).tolist() == [sum(each)] * stages


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_as_many_batches_as_stages_fill_the_pipeline(stages: int) -> None:
    """A pass leaves in every stage's time: S times the tokens of one batch in the same time, and
    one stage's time more for each batch behind the first."""
    simulation, each = even(decoding(stages, stages)), passes_of(40)
    ends = [stages * sum(each) + batch * each[-1] for batch in range(stages)]
    assert simulation.recorder.end_ps.tolist() == ends
    assert stage_busy(simulation).tolist() == [stages * sum(each)] * stages


def test_states_travel_between_stages() -> None:
    """What a pass takes alone is the sum of its stages and hops; hops are no work of a GPU."""
    weights = (1000, 1500, 700)
    simulation, _ = simulated(decoding(1, 3), weights)
    cost = toy_pipeline(weights)
    each = [cost.pass_one_ps(1, k, samples=1) for k in range(2, 41)]
    assert simulation.recorder.end_ps.tolist() == [cost.pass_one_ps(0, 0, 1, 1, 0, 1) + sum(each)]
    busy = stage_busy(simulation)
    assert busy.sum() + 40 * sum(cost.hops_ps(1)) == simulation.recorder.end_ps[0]
    assert busy[1] > busy[0] > busy[2]


def test_the_longest_stage_sets_the_pace() -> None:
    simulation, _ = simulated(decoding(2, 2, 300), (1000, 3000))
    busy, span = stage_busy(simulation), int(simulation.recorder.end_ps.max())
    assert busy[1] > 0.98 * span
    assert busy[0] < 0.5 * span


def stage_busy(simulation: Simulation) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Time that every stage was at work."""
    steps = simulation.recorder.steps(simulation.cost)
    none = np.zeros(1, dtype=np.int64)  # no pass ended
    return np.array([steps.get(stage_column(s), none).sum() for s in range(simulation.batches)])


# -- a plain walk ---------------------------------------------------------------------------------


def pipe_case(rng: random.Random, composition: Composition) -> tuple[Case, tuple[int, ...]]:
    """A random case on one to three pipelines."""
    weights = rng.choice(WEIGHTS)
    case = random_case(rng, composition)
    roles = case.roles if len(case.roles) < 4 else case.roles[1:3]
    engines = len(roles) * len(weights)
    return replace(
        case,
        engines=engines,
        roles=tuple(role for role in roles for _ in weights),
        ranks=1,
        devices=1,
        engines_per_node=len(weights) * rng.choice((1, 2)),
        bad_copies=0,
    ), weights


def compare(case: Case, weights: Sequence[int]) -> None:
    """The walk, the simulator, and both one pass per step come to the same."""
    walked = plain(case, weights)
    simulation, entries = simulated(case, weights)
    first, end = walked.times()
    assert simulation.recorder.first_token_ps.tolist() == first
    assert simulation.recorder.end_ps.tolist() == end
    assert simulation.recorder.reasons == walked.reasons
    for name in COLUMNS:
        column = getattr(simulation.table, name).tolist()
        assert column == getattr(walked.table, name).tolist(), name
    assert [encode(entry) for entry in entries] == walked.log
    for options in ({"reference": True}, {"max_passes": 3}):
        other, _ = simulated(case, weights, **options)
        assert state(other) == state(simulation), options


def state(simulation: Simulation) -> dict[str, Any]:
    """What must not depend on the length of steps."""
    recorder, engines = simulation.recorder, simulation.runtime.cluster.engines
    # With lag a pass may be in the record of steps before it is lost.
    lost = simulation.lag and any(mark["text"].startswith("lost") for mark in recorder.marks)
    return {
        "first": recorder.first_token_ps.tolist(),
        "end": recorder.end_ps.tolist(),
        "reasons": sorted(recorder.reasons.items()),
        "columns": [getattr(simulation.table, name).tolist() for name in COLUMNS],
        "clocks": [(engine.q, engine.k) for engine in engines],
        "passes": simulation.passes,
        "busy": [] if lost else stage_busy(simulation).tolist(),
        "free": [pipeline.free_ps for pipeline in simulation.pipelines],
    }


def test_random_loads_equal_a_plain_walk() -> None:
    walk(random.Random(1), 80)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_many_random_loads_equal_a_plain_walk(seed: int) -> None:
    walk(random.Random(100 + seed), 300)


def walk(rng: random.Random, count: int) -> None:
    """Random cases; the first that fails is made small and shown."""
    for _ in range(count):
        composition, number = rng.choice(swaps()), rng.randrange(1 << 30)
        case, weights = pipe_case(random.Random(number), composition)
        try:
            compare(case, weights)
        except AssertionError as error:
            small = smallest(case, fails(partial(compare, weights=weights)))
            raise AssertionError(f"{error}\n{weights} {number} {small}") from error


def test_stages_serve_one_pass_at_a_time() -> None:
    rng = random.Random(7)
    case, weights = pipe_case(rng, ("vllm", {}))
    walked = plain(replace(case, troubles=()), weights)
    assert isinstance(walked.walker, PipeWalker)
    spans = sorted(walked.walker.busy)
    for one, other in pairwise(spans):
        if one[:2] == other[:2]:
            assert one[3] <= other[2]


# -- troubles -------------------------------------------------------------------------------------


def test_the_loss_of_one_gpu_takes_the_pipeline() -> None:
    """All of its batches are lost, and their rows go on with the other pipeline."""
    rows = (Row(prompt=9, budget=60, output=60),) * 8
    case = Case(preset="vllm", rows=rows, engines=4, engines_per_node=2)
    whole, _ = simulated(case, (1000, 1000))
    broken = replace(case, troubles=(("lost", 200_000, 0, 1), ("back", 900_000, 0, 1)))
    compare(broken, (1000, 1000))
    simulation, entries = simulated(broken, (1000, 1000))
    lost = [one.event.engine for one in entries if isinstance(one.event, ev.DeviceLost)]
    back = [one.event.engine for one in entries if isinstance(one.event, ev.DeviceBack)]
    assert (lost, back) == ([0, 1], [0, 1])
    assert simulation.recorder.reasons == whole.recorder.reasons
    assert set(simulation.table.engine.tolist()) == {2, 3}
    assert [mark["text"] for mark in simulation.recorder.marks] == ["lost (gpu 1)", "back (gpu 1)"]


def test_a_slow_gpu_slows_its_stage_alone() -> None:
    case = replace(decoding(1, 2), troubles=(("slow", 0, 0, 4),))  # x 2.3, the GPU of stage 0
    healthy, slow = even(replace(case, troubles=())), even(case)
    one, other = stage_busy(healthy), stage_busy(slow)
    assert other[1] == one[1]
    assert other[0] == pytest.approx(2.3 * one[0], abs=40)  # each pass is rounded down
    assert slow.recorder.end_ps[0] == other.sum()


def test_waiting_for_other_batches_is_no_slowness() -> None:
    """Long prompts of one batch hold up the other; nobody is taken for slow, and nothing moves."""
    rows = (*(Row(prompt=400, budget=2, output=2),) * 30, Row(prompt=1, budget=300, output=300))
    case = Case(
        preset="batchgen", rows=rows, engines=4, hbm_pages=400, budget=400, boundary=4, seqs=1
    )
    simulation, _ = simulated(case, (1000, 1000))
    assert not simulation.runtime.cluster.members.slow
    assert simulation.table.migrations.sum() == 0
    troubled = replace(case, troubles=(("slow", 0, 0, 4),))
    compare(troubled, (1000, 1000))
    assert sum(simulated(troubled, (1000, 1000))[0].table.migrations) > 0


# -- whole runs -----------------------------------------------------------------------------------


def recorded(rows: int, **more: Any) -> RunRecord:
    return simulate(
        SimJob(
            trace=str(TRACE),
            model="llama-3.1-8b",
            gpu="h100",
            gpus=16,
            layout="tp2+pp4",
            policy="vllm",
            limit=rows,
            **more,
        )
    )


def test_reports_show_bubbles(tmp_path: Path) -> None:
    one, many = recorded(1), recorded(300)
    for record in (one, many):
        assert record.layout == "tp2+pp4,dp2"
        assert record.num_stages == 4
        assert record.num_gpus == sum(engine["num_gpus"] for engine in record.engines) == 16
        assert not record.rows["status"].any()
        split = metrics.time_split_s(record)
        assert sum(split.values()) == pytest.approx(metrics.bct_s(record))
        # The heat map has as much work in it as the metrics.
        shown = series.busy_series(record, 200)
        assert shown.mean() == pytest.approx(metrics.busy_fraction(record), rel=0.01)
    # One row keeps one of two pipelines at a quarter, less the hops; its GPUs about alike.
    assert 0.11 < metrics.busy_fraction(one) < 1 / 8  # type: ignore[operator]
    by_gpu = series.busy_series(one, 50).mean(axis=1)
    assert by_gpu[4:].max() == 0
    assert by_gpu[:4] == pytest.approx([0.25] * 4, rel=0.15)
    assert by_gpu[3] == by_gpu.max()  # which has the head
    assert metrics.busy_fraction(many) > 0.5  # type: ignore[operator]
    assert 0 < metrics.mfu(many) < 1  # type: ignore[operator]
    summary = write_run(many, tmp_path / "run", plots=True)
    assert metrics.summary(load_run(tmp_path / "run")) == summary


def test_a_lost_gpu_of_a_file_takes_its_pipeline(tmp_path: Path) -> None:
    """GPU 13 is one of stage 2 of the second pipeline."""
    faults = tmp_path / "faults.jsonl"
    faults.write_text('{"at_s": 1, "kind": "lost", "gpu": 13}\n')
    record = recorded(200, faults=str(faults))
    assert not record.rows["status"].any()
    assert set(record.rows["engine"].tolist()) <= {0, 1, 2, 3}
    late = record.steps["start_ps"] > 10**12
    assert set(record.steps["engine"][late].tolist()) <= {0, 1, 2, 3}
    assert set(record.steps["engine"].tolist()) == set(range(8))
    assert record.marks[0]["engine"] == 4


@pytest.mark.parametrize("depth", ["1", "2"])
@pytest.mark.parametrize("policy", ["vllm", "batchgen", "static"])
def test_runs_of_any_policy_equal_the_reference(policy: str, depth: str) -> None:
    """A real model, prompts in chunks, streams to the host: one pass per step is the same."""
    job = SimJob(
        trace=str(TRACE),
        model="llama-3.1-8b",
        gpu="h100",
        gpus=8,
        layout="pp4",
        policy=policy,
        limit=16,
        overrides=(("plan.depth", depth), ("plan.token_budget", "1024")),
    )
    trace = load(job.trace, max_rows=job.limit)
    plain_run, reference = (set_up(job, trace, reference=one).simulation for one in (False, True))
    plain_run.run()
    reference.run()
    assert state(plain_run) == state(reference)
    assert plain_run.events < reference.events
