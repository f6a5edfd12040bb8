"""The plain walker with pipelines: an oracle of batchgen.sim that shares only the contract with it.

Pass by pass, one event each. A stage serves passes in the order in which they were ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from core_cases import Case, Outcome, schedule_case
from core_sim import Simulation

from batchgen import actions as act
from batchgen import events as ev
from batchgen.check.device import NORMAL
from batchgen.check.toy import ToyAdvisor, ToyCost
from batchgen.check.walker import Walker
from batchgen.cost.pipeline import PipelineCost
from batchgen.layout import Layout
from batchgen.log import Entry
from batchgen.runtime.core import Runtime
from batchgen.sim.faults import Fault


class StageToy(ToyCost):
    """A stage with so many thousandths of the toy's fixed time and context."""

    def __init__(self, thousandths: int, copy_ps: int = 170) -> None:
        super().__init__(1, copy_ps=copy_ps)
        self.FIXED = ToyCost.FIXED * thousandths // 1000
        self.DECODE = ToyCost.DECODE * thousandths // 1000


class EvenToy(ToyCost):
    """A stage whose time does not depend on samples, so that the last is like all others."""

    SAMPLE = 0


def even_pipeline(stages: int) -> PipelineCost:
    """Equal stages, and no time between them."""
    return PipelineCost(None, Layout(pp=stages), [EvenToy()] * stages, [(0.0, 0.0)] * (stages - 1))


def toy_pipeline(weights: Sequence[int], copy_ps: int = 170) -> PipelineCost:
    """Stages of these weights; hops of 7 ps a token and 900 ps, 1,000 more each time."""
    hops = [(7.0, 900.0 + 1000 * number) for number in range(len(weights) - 1)]
    known = {weight: StageToy(weight, copy_ps) for weight in weights}
    stages = [known[weight] for weight in weights]
    return PipelineCost(None, Layout(pp=len(weights)), stages, hops)


class PipeAdvisor(ToyAdvisor):
    """Of pipelines: there is no other layout."""

    def cost(self, layout: str) -> Any:
        return self.home


def advisor_of(case: Case, weights: Sequence[int]) -> PipeAdvisor:
    home: Any = toy_pipeline(weights, case.copy_ps)
    return PipeAdvisor(home, case.hbm_pages, case.page)


class _Loads:
    """Stands for the cost of a walker's device, which asks it for nothing but copies."""

    num_ranks = 1

    def __init__(self, cost: PipelineCost) -> None:
        self.copy_ps = cost.copy_ps
        self.switch_ps = cost.switch_ps


class PipeWalker(Walker):
    """Engines g S to g S + S - 1 share a pipeline."""

    def __init__(self, *args: Any, pipeline: PipelineCost, **options: Any) -> None:
        self.pipe = pipeline
        self.loads: Any = _Loads(pipeline)
        super().__init__(*args, cost=lambda layout: self.loads, **options)
        groups = len(self.devices) // pipeline.num_stages
        self.free = [[0] * pipeline.num_stages for _ in range(groups)]
        self.speeds = [[NORMAL] * pipeline.num_stages for _ in range(groups)]
        self.link_free: list[dict[str, int]] = [{} for _ in range(groups)]
        self.busy: list[tuple[int, int, int, int, int]] = []  # group, stage, begin, end, engine

    def begin(self, engine: int) -> None:
        device = self.devices[engine]
        one = device.composition.next_pass()
        assert one is not None
        assert device.step is not None
        self.check_pass(engine, device, one)
        device.flying, device.flying_step, device.flying_q = one, device.step, device.q
        device.q += 1
        loads = [tuple(load) for load in device.loads(one, self.table, self.computed)]
        end, told = self.through(engine, loads)
        device.began_ps = end - told
        life = device.life
        self.at(end, ev.STEP, engine, lambda: self.pass_ended(engine, life))

    def through(self, engine: int, loads: list[tuple[int, ...]]) -> tuple[int, int]:
        """When a pass leaves the last stage, and what it would have taken alone."""
        group = engine // self.pipe.num_stages
        (load,), at, alone = loads, self.now, 0
        for stage, cost in enumerate(self.pipe.stages):
            if stage:
                each, fixed = self.pipe.hops[stage - 1]
                hop = int(each) * (load[0] + load[2]) + int(fixed)
                at, alone = at + hop, alone + hop
            samples = load[5] if stage == self.pipe.num_stages - 1 else 0
            time = cost.time_ps([(*load[:5], samples, load[6])])
            alone += time
            begin = max(at, self.free[group][stage])
            at = self.free[group][stage] = begin + time * self.speeds[group][stage] // NORMAL
            self.busy.append((group, stage, begin, at, engine))
        return at, alone * max(self.speeds[group]) // NORMAL

    def group(self, engine: int) -> range:
        first = engine // self.pipe.num_stages * self.pipe.num_stages
        return range(first, first + self.pipe.num_stages)

    def slow(self, engine: int, gpu: int, factor: int) -> None:
        self.speeds[engine // self.pipe.num_stages][gpu % self.pipe.num_stages] = factor

    def lose(self, engine: int, gpu: int) -> None:
        group = engine // self.pipe.num_stages
        for one in self.group(engine):
            self.link_free[group].clear()
            super().lose(one, gpu)
            self.free[group] = [self.now] * self.pipe.num_stages

    def back(self, engine: int, gpu: int) -> None:
        for one in self.group(engine):
            super().back(one, gpu)

    def notice(self, engine: int, gpu: int, deadline: int) -> None:
        for one in self.group(engine):
            self.tell(ev.DeviceNotice(one, gpu, deadline))

    def copy(self, action: act.Copy) -> None:
        source, target = action.engine, action.to_engine
        same = source // self.pipe.num_stages == target // self.pipe.num_stages
        nodes = [self.plan.engines[one].node for one in (source, target)]
        in_host = action.from_pool == "host"
        link = "inter" if nodes[0] != nodes[1] else "host" if in_host else "intra"
        if same:
            link = "host"
        device, group = self.devices[source], source // self.pipe.num_stages
        end = self.now
        if source == target or not same or action.from_pool != "hbm":
            there = target // self.pipe.num_stages
            if same:
                lanes = [(group, f"to {action.to_pool}")]
            elif link == "host":
                lanes = [(there, "to hbm")]
            else:
                lanes = [(group, "out"), (there, "in")]
            end = max(self.now, *(self.link_free[one].get(lane, 0) for one, lane in lanes))
            end += self.pipe.copy_ps(sum(action.tokens), link)  # type: ignore[arg-type]
            for one, lane in lanes:
                self.link_free[one][lane] = end
        ends = [self.devices[target]] + ([device] if action.from_pool == "hbm" else [])
        lives = [one.life for one in ends]

        def arrive() -> None:
            if [one.life for one in ends] == lives:
                self.tell(ev.CopiesDone(action.copy_id))

        self.at(end, ev.COPY, 0, arrive)
        rows = sorted(zip(action.rows, action.tokens, strict=True))
        self.others.append((self.now, action.purpose, source, target, rows))


def plain(case: Case, weights: Sequence[int], **options: Any) -> Outcome:
    """The case on pipelines, run by the walker."""
    runtime = runtime_of(case, weights, **options)
    walker = PipeWalker(
        runtime,
        case.plan(),
        [row.output for row in case.rows],
        pipeline=toy_pipeline(weights, case.copy_ps),
        stages={
            index: [output for _, output, _ in row.stages]
            for index, row in enumerate(case.rows)
            if row.stages
        },
    )
    schedule_case(replace(case, troubles=of_rows(case)), walker)
    for kind, time, one, two in of_devices(case):
        group, gpu = numbers(case, one, two, len(weights))
        engine = group * len(weights)
        if kind == "slow":
            factor = factor_of(two)
            walker.at(time, 0, 0, lambda e=engine, g=gpu, f=factor: walker.slow(e, g, f))  # type: ignore[misc]
        elif kind == "notice":
            walker.at(time, 0, 0, lambda e=engine, g=gpu, t=time: walker.notice(e, g, t))  # type: ignore[misc]
        elif kind == "lost":
            walker.at(time, 0, 0, lambda e=engine, g=gpu: walker.lose(e, g))  # type: ignore[misc]
        else:
            walker.at(time, 0, 0, lambda e=engine, g=gpu: walker.back(e, g))  # type: ignore[misc]
    walker.run()
    return Outcome(case=case, walker=walker, runtime=runtime)


def simulated(
    case: Case, weights: Sequence[int], *, pipeline: PipelineCost | None = None, **options: Any
) -> tuple[Simulation, list[Entry]]:
    """The case on pipelines, run by batchgen.sim; pipeline: another than that of the weights."""
    runtime = runtime_of(case, weights, **options)
    entries: list[Entry] = []
    simulation = Simulation(
        runtime,
        runtime.table,
        case.plan(),
        pipeline or toy_pipeline(weights, case.copy_ps),
        np.array([row.output for row in case.rows], dtype=np.int32),
        stages=lambda row, stage: case.rows[row].stages[stage - 1][1],
        observer=lambda event, now, actions: entries.append(Entry(now, event, list(actions))),
    )
    for kind, time, one, two in of_rows(case):
        row = one % len(case.rows)
        if kind == "cancel":
            simulation.inject(ev.Cancelled([row, (row + two) % len(case.rows)]), time)
        elif kind == "row_failed":
            simulation.inject(ev.RowFailed(row, "bad"), time)
        elif kind == "pool_short":
            pages = 1 + two % (case.hbm_pages // 2)
            simulation.inject(ev.PoolShort(one % case.engines, 0, pages), time)
        else:
            simulation.inject(ev.PlanChanged(1 + one % 64, 1 + two % 8), time)
    for kind, time, one, two in of_devices(case):
        group, gpu = numbers(case, one, two, simulation.batches)
        factor = factor_of(two) if kind == "slow" else 1000
        fault = Fault(time, kind, group * simulation.batches + gpu, factor, time)
        simulation.add_fault(fault, simulation.batches)
    at: dict[int, list[int]] = {}
    for index, row_of in enumerate(case.rows):
        at.setdefault(row_of.arrival, []).append(index)
    for time in sorted(at):
        simulation.arrive(at[time], time)
    simulation.close_input(max(at))
    simulation.run()
    return simulation, entries


def runtime_of(case: Case, weights: Sequence[int], **options: Any) -> Runtime:
    """The case's runtime, with questions about pipelines answered."""
    runtime = replace(case, advised=False).runtime(**options)
    if not case.advised:
        return runtime
    return Runtime(
        runtime.table,
        case.plan(),
        case.policy(),
        page_keys=runtime.page_keys,
        advisor=advisor_of(case, weights),
        bodies=case.bodies(),
        **options,
    )


def of_devices(case: Case) -> list[tuple[str, int, int, int]]:
    return [one for one in case.troubles if one[0] in ("slow", "lost", "back", "notice")]


def of_rows(case: Case) -> tuple[tuple[str, int, int, int], ...]:
    return tuple(one for one in case.troubles if one[0] not in ("slow", "lost", "back", "notice"))


def numbers(case: Case, one: int, two: int, stages: int) -> tuple[int, int]:
    """The pipeline and its GPU that a trouble is about."""
    return one % (case.engines // stages), two % stages


def factor_of(two: int) -> int:
    return 1000 if two % 3 == 0 else 300 + 500 * (two % 8)
