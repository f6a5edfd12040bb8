"""Slow, healed and lost engines against the bars of docs/stragglers.md: prints a table, exits
with 1 when one does not hold. It simulates; no clock of this machine is read.

    python benchmarks/stragglers.py [--seeds 3] [--rows 4000] [--engines 16]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from batchgen.events import DeviceLost
from batchgen.runtime.engine.machine import EngineMachine
from batchgen.sim.faults import Fault
from batchgen.sim.floors import run_bounds
from batchgen.sim.setup import Setup, set_up
from batchgen.simjob import SimJob
from batchgen.trace.devices.compose import compose
from batchgen.trace.devices.events import Trouble
from batchgen.trace.generate import GenerateOptions, Part, generate
from batchgen.trace.lengths import Lognormal
from batchgen.trace.table import Trace
from batchgen.units import to_ps

SLOW = 2.0
AROUND_BCT, AROUND_LOSS = 1.05, 1.1  # bars of issue 10
ACCIDENT_S = 0.02
FIXED = ("placement.steal", "false")


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


# -- bars -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of one run: what was reached may not exceed what is allowed."""

    trouble: str
    what: str
    reached: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.reached <= self.allowed


def capacity_time_s(work_s: float, changes: Sequence[tuple[float, float]]) -> float:
    """When so many engine-seconds are done; `changes`: (from when on, engines' worth of speed)."""
    ends = [at for at, _ in changes[1:]] + [float("inf")]
    for (begin, speed), end in zip(changes, ends, strict=True):
        if work_s <= speed * (end - begin):
            return begin + work_s / speed
        work_s -= speed * (end - begin)
    raise AssertionError("the last change has no end")


def _slow(at_s: float, engine: int, factor: float = SLOW) -> Fault:
    return Fault(to_ps(at_s), "slow", engine, round(factor * 1000))


def bars(load: Load) -> list[Bar]:
    """All bars of one load. The engine in trouble is another one for each seed. `work` is the time
    that the engines of the healthy run spend in passes."""
    healthy = run(load)
    full = float(load.engines)
    less, victim = full - 1 + 1 / SLOW, load.seed % load.engines
    work_s, longest_s = healthy.busy_s, healthy.longest_row_s
    found = [Bar(trouble="none", what="engines taken for slow", reached=healthy.alarms, allowed=0)]

    def held(trouble: str, outcome: Outcome, changes: Sequence[tuple[float, float]]) -> None:
        allowed = AROUND_BCT * capacity_time_s(work_s, changes) + longest_s
        idle = len(outcome.idle_while_rows_wait)
        found.extend(
            (
                Bar(trouble=trouble, what="BCT, s", reached=outcome.bct_s, allowed=allowed),
                Bar(trouble=trouble, what="idle beside rows that wait", reached=idle, allowed=0),
                Bar(trouble=trouble, what="failed rows", reached=outcome.failed_rows, allowed=0),
            )
        )

    always = [_slow(0.0, victim)]
    fixed = run(replace(load, overrides=(*load.overrides, FIXED)), always)
    moved = run(load, always)
    held("slow from the start", moved, [(0.0, less)])
    if healthy.bct_s * full / less <= fixed.bct_s * 2 / 3:  # else long rows bound both
        found.append(
            Bar(
                trouble="slow from the start",
                what="BCT, s, against 2/3 of fixed placement",
                reached=moved.bct_s,
                allowed=fixed.bct_s * 2 / 3,
            )
        )
    # The others have drained: the last engine but one has ended its last row.
    last = int(np.argmax(healthy.last_end_s))
    drained_s = sorted(healthy.last_end_s)[-2]
    held(
        "slow when others drained",
        run(load, [_slow(drained_s, last)]),
        [(0.0, full), (drained_s, less)],
    )
    heals_s = healthy.bct_s / 2
    heals = run(load, [_slow(0.0, victim), _slow(heals_s, victim, 1.0)])
    held("slow, heals at half time", heals, [(0.0, less), (heals_s, full)])

    # Two at once: another one turns slow, by more, before the first heals.
    second, again_s = (victim + 1) % load.engines, healthy.bct_s / 4
    two = run(load, [*always, _slow(again_s, second, 3.0), _slow(heals_s, victim, 1.0)])
    held(
        "two slow, one heals",
        two,
        [(0.0, less), (again_s, less - 1 + 1 / 3), (heals_s, full - 1 + 1 / 3)],
    )
    healed = [_slow(heals_s, victim, 1.0), _slow(heals_s, second, 1.0)]
    held(
        "two slow, both heal",
        run(load, [*always, _slow(0.0, second, 3.0), *healed]),
        [(0.0, less - 1 + 1 / 3), (heals_s, full)],
    )
    found.append(false_alarms(load, healthy))

    lost = run(load, [Fault(to_ps(heals_s), "lost", victim)])
    left_s = (healthy.bct_s - heals_s) / (load.engines - 1)
    again_s = lost.recomputed_at_loss * prompt_token_s(load) / (load.engines - 1)
    found += [
        Bar(
            trouble="lost at half time",
            what="extra BCT, s",
            reached=lost.bct_s - healthy.bct_s,
            allowed=AROUND_LOSS * (left_s + again_s),
        ),
        Bar(
            trouble="lost at half time",
            what="recomputed tokens not of the loss",
            reached=abs(lost.recomputed_at_loss - lost.lost_tokens),
            allowed=0,
        ),
        Bar(trouble="lost at half time", what="failed rows", reached=lost.failed_rows, allowed=0),
    ]
    assert lost.output_tokens == healthy.output_tokens
    return found


def accidents(load: Load, span_s: float) -> list[Trouble]:
    """Passes that take longer on healthy engines now and then: spells of one to three passes in
    20, by 1.2 times a Pareto variable of index 1, at most 20 times as long."""
    rng = random.Random(load.seed)
    troubles = []
    for engine in range(load.engines):
        at_s = 0.0
        while at_s < span_s:
            at_s += ACCIDENT_S + rng.expovariate(1 / (20 * ACCIDENT_S))
            late = round(min(20.0, 1.2 * rng.paretovariate(1.0)) * 1000)
            troubles.append(
                Trouble(to_ps(at_s), "slow", gpu=engine, factor=late, for_ps=to_ps(ACCIDENT_S))
            )
    return troubles


def false_alarms(load: Load, healthy: Outcome) -> Bar:
    """Alarms of healthy engines, of a hundred passes that were timed."""
    shaken = run(load, compose(accidents(load, healthy.bct_s), load.engines, 1), watch=False)
    return Bar(
        trouble="accidents of healthy engines",
        what=f"alarms, % of {shaken.timed} timed passes",
        reached=100 * shaken.alarms / shaken.timed,
        allowed=1.0,
    )


def prompt_token_s(load: Load) -> float:
    """Time of a prompt token in a large pass."""
    cost = set_up(load.job(), load.trace()).machine.planner.home
    return cost.pass_one_ps(0, 0, 8192, 8192**2) / 8192 / 1e12


def table(loads: Sequence[Load], tell: Callable[[str], None]) -> bool:
    """Prints all bars; whether all hold."""
    good = True
    tell(f"{'load':34} {'trouble':26} {'what':40} {'reached':>10} {'allowed':>10}")
    for load in loads:
        name = f"{load.rows} rows, {load.output_tokens:g} out, {load.policy}, seed {load.seed}"
        for bar in bars(load):
            good &= bar.holds
            end = "" if bar.holds else "  MISSED"
            tell(
                f"{name:34} {bar.trouble:26} {bar.what:40} {bar.reached:10.4g} "
                f"{bar.allowed:10.4g}{end}"
            )
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--policy", default="batchgen")
    given = parser.parse_args(arguments)
    loads = [
        Load(engines=given.engines, rows=rows, seed=seed, policy=given.policy)
        for rows in (given.rows, 4 * given.rows)
        for seed in range(given.seeds)
    ]
    return 0 if table(loads, print) else 1


if __name__ == "__main__":
    sys.exit(main())
