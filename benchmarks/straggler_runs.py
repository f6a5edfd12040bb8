"""Runs of engines in trouble: a batch of heavy-tailed rows, one simulation with the troubles that
are given, who idled beside rows that wait, and what a loss costs. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgen.events import DeviceLost
from batchgen.runtime.engine.machine import EngineMachine
from batchgen.sim.faults import Fault
from batchgen.sim.floors import run_bounds
from batchgen.sim.setup import Setup, set_up
from batchgen.simjob import SimJob
from batchgen.trace.generate import GenerateOptions, Part, generate
from batchgen.trace.lengths import Lognormal
from batchgen.trace.table import Trace
from batchgen.units import to_ps


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A batch of heavy-tailed rows on engines of one GPU each."""

    engines: int = 16
    rows: int = 4000
    seed: int = 0
    prompt_tokens: float = 700
    output_tokens: float = 1000
    sigma: float = 1.0
    max_output_tokens: int = 8000
    policy: str = "batchgen"
    overrides: tuple[tuple[str, str], ...] = ()

    def job(self) -> SimJob:
        return SimJob(
            trace="generated",
            model="llama-3.1-8b",
            gpu="h100",
            gpus=self.engines,
            layout=f"dp{self.engines}",
            policy=self.policy,
            overrides=self.overrides,
        )

    def trace(self) -> Trace:
        output = Lognormal(mean=self.output_tokens, sigma=self.sigma, max=self.max_output_tokens)
        part = Part(prompt=Lognormal(mean=self.prompt_tokens, sigma=0.8, max=8000), output=output)
        options = GenerateOptions(num_rows=self.rows, seed=self.seed, prefix_block_tokens=0)
        return generate((part,), options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run took. `idle_while_rows_wait`: times and engines at which one had nothing to do
    while another had rows waiting (in its lanes, or suspended on its host) from which it would
    have gained."""

    bct_s: float
    busy_s: float
    last_end_s: tuple[float, ...]
    longest_row_s: float
    failed_rows: int
    output_tokens: int
    recomputed_tokens: int
    lost_tokens: int
    recomputed_at_loss: int
    timed: int
    alarms: int
    idle_while_rows_wait: tuple[tuple[float, int, int], ...]


class Watch:
    """Sees every event with its actions: idle engines beside rows that wait, and what a loss costs.
    Of a loss it counts by itself what was computed and what the host had of it."""

    def __init__(self, ready: Setup) -> None:
        self.runtime, self.table = ready.simulation.runtime, ready.simulation.table
        self.page = ready.simulation.plan.page_tokens
        self.idle: list[tuple[float, int, int]] = []
        self.lost_tokens = self.recomputed_at_loss = 0
        self._on = self.runtime.on

    def __call__(self, event: Any, now: int) -> list[Any]:
        if type(event) is not DeviceLost:
            actions = self._on(event, now)
        else:
            before, expected = int(self.table.recomputed.sum()), self._at_stake(event)
            actions = self._on(event, now)
            self.recomputed_at_loss += int(self.table.recomputed.sum()) - before
            self.lost_tokens += expected
        self._look(now)
        return actions

    def _at_stake(self, event: DeviceLost) -> int:
        """Tokens with KV in the HBM of an engine at the end of its last pass, without those of
        pages that its host has. (At depth 1; rows in copies are not counted.)"""
        engine, table = self.runtime.cluster.engines[event.engine], self.table
        step, total = engine.launched, 0
        ran = event.end - step.q0 if step is not None else 0
        ended = {row for row, _, _ in event.finished}
        chunks = {row: start + size * ran for row, start, size, _ in step.chunks} if step else {}
        decodes = ran if step is not None and step.decode else 0
        for rank in engine.ranks:
            for row in {*rank.running, *rank.prefilling} - ended:
                if row in rank.running:
                    tokens = table.v_offset[row] + engine.k + decodes
                    closed = tokens - tokens % self.page if engine.streaming else 0
                    total += tokens - max(closed, table.v_host_valid[row])
                else:
                    total += max(
                        0, chunks.get(row, table.v_computed[row]) - table.v_host_valid[row]
                    )
            total += sum(table.v_computed[row] - table.v_host_valid[row] for row in rank.held)
        return total

    def _look(self, now: int) -> None:
        cluster = self.runtime.cluster
        most = max(cluster.engines, key=_waiting)
        if _waiting(most) < 2:
            return
        for engine in cluster.engines:
            if engine is most or not engine.alive or engine.draining or engine.launched is not None:
                continue
            if engine.num_resident or _waiting(engine) or engine.flying or engine.requests:
                continue
            # A slow one gains when it ends its row before the other would have ended all.
            slowness = cluster.pace.slowness(engine) + cluster.pace.slowness(most)
            rows = most.num_resident + _waiting(most)
            if rows * cluster.pace.slowness(most) >= slowness and engine.roomiest >= most.roomiest:
                self.idle.append((now / 1e12, engine.id, _waiting(most)))


def _waiting(engine: EngineMachine) -> int:
    """Rows that wait for pages: those in lanes, and those that were suspended to the host. Under
    `batchgen` hardly any other waits: rows are admitted early and yield."""
    return engine.num_waiting + engine.num_ready


def run(load: Load, faults: Sequence[Fault] = (), *, watch: bool = True) -> Outcome:
    """One simulation with troubles given as they are."""
    job, trace = load.job(), load.trace()
    ready = set_up(job, trace)
    watching = Watch(ready)
    simulation = ready.simulation
    if watch:
        simulation._on = watching
    for fault in faults:
        simulation.add_fault(fault, 1)
    simulation.run()
    recorder, table, pace = simulation.recorder, simulation.table, simulation.runtime.cluster.pace
    rows, steps = recorder.rows(table, ready.arrival_ps), recorder.steps(ready.machine.planner.home)
    ends = np.zeros(load.engines, dtype=np.int64)
    np.maximum.at(ends, steps["engine"], steps["start_ps"] + steps["duration_ps"])
    reasons = recorder.row_reasons()
    return Outcome(
        bct_s=int(recorder.end_ps.max()) / 1e12,
        busy_s=int(steps["duration_ps"].sum()) / 1e12,
        last_end_s=tuple(float(end) / 1e12 for end in ends),
        longest_row_s=run_bounds(job, ready, trace, rows)["longest_row_s"],
        failed_rows=sum(reason not in ("stop", "length") for reason in reasons),
        output_tokens=int(rows["output_tokens"].sum()),
        recomputed_tokens=int(table.recomputed.sum()),
        lost_tokens=watching.lost_tokens,
        recomputed_at_loss=watching.recomputed_at_loss,
        timed=pace.timed,
        alarms=pace.alarms,
        idle_while_rows_wait=tuple(watching.idle),
    )


def capacity_time_s(work_s: float, changes: Sequence[tuple[float, float]]) -> float:
    """When so many engine-seconds are done; `changes`: (from when on, engines' worth of speed)."""
    ends = [at for at, _ in changes[1:]] + [float("inf")]
    for (begin, speed), end in zip(changes, ends, strict=True):
        if work_s <= speed * (end - begin):
            return begin + work_s / speed
        work_s -= speed * (end - begin)
    raise AssertionError("the last change has no end")


def slow(at_s: float, engine: int, factor: float) -> Fault:
    """An engine whose passes take `factor` times as long from then on."""
    return Fault(to_ps(at_s), "slow", engine, round(factor * 1000))
