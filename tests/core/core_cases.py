"""Random small cases for the core, and one function that runs a case and keeps all it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from core_toy import ToyAdvisor, ToyCost
from hypothesis import strategies as st

from batchgen import actions as act
from batchgen import events as ev
from batchgen.coroutine import BodyFactory
from batchgen.log import Entry, encode
from batchgen.plan import EngineSpec, Plan
from batchgen.policy.presets import build_policy, find_preset
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table
from batchgen.sim.cluster import Simulation
from batchgen.sim.faults import Fault
from batchgen.step import Step, unroll

PRESETS = ("static", "orca", "vllm", "batchgen")
LARGE_HOST = 10_000


@dataclass(frozen=True, kw_only=True)
class Row:
    prompt: int
    budget: int
    output: int
    arrival: int = 0
    group: int = -1  # rows of one group share the first `shared` tokens
    shared: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One load on one plan. `troubles` are (kind, at_ps, number, number)."""

    preset: str
    rows: tuple[Row, ...]
    engines: int = 1
    ranks: int = 1
    engines_per_node: int = 1
    hbm_pages: int = 40
    host_pages: int = 0
    page: int = 4
    boundary: int = 8
    budget: int = 64
    seqs: int = 8
    prefix: bool = False
    troubles: tuple[tuple[str, int, int, int], ...] = ()
    overrides: dict[str, str] = field(default_factory=dict)
    copy_ps: int = 170

    def plan(self) -> Plan:
        nodes = -(-self.engines // self.engines_per_node)
        return Plan(
            page_tokens=self.page,
            boundary=self.boundary,
            engines=tuple(
                EngineSpec(
                    engine=index,
                    node=index // self.engines_per_node,
                    num_ranks=self.ranks,
                    hbm_pages=self.hbm_pages,
                )
                for index in range(self.engines)
            ),
            host_pages=(self.host_pages,) * nodes,
            token_budget=self.budget,
            max_num_seqs=self.seqs,
            max_context=100_000,
        )

    def page_keys(self) -> Callable[[int], list[int]]:
        def keys(row: int) -> list[int]:
            one = self.rows[row]
            full, shared = one.prompt // self.page, min(one.shared, one.prompt) // self.page
            if one.group < 0:
                shared = 0
            private = range(1_000_000 + row * 1000, 1_000_000 + row * 1000 + full - shared)
            return [*range(one.group * 1000, one.group * 1000 + shared), *private]

        return keys


@dataclass(kw_only=True)
class Outcome:
    """What a run did: entries in order, the composition of every pass, times of rows."""

    case: Case
    table: Table
    simulation: Simulation
    entries: list[Entry]

    @property
    def log(self) -> list[bytes]:
        return [encode(entry) for entry in self.entries]

    @property
    def reasons(self) -> dict[int, str]:
        return self.simulation.recorder.reasons

    def passes(self) -> list[list[tuple[Any, ...]]]:
        """Per engine: (q, decodes, chunks, finished) of every pass that ran."""
        passes: list[list[tuple[Any, ...]]] = [[] for _ in range(self.case.engines)]
        running: list[list[int]] = [[] for _ in range(self.case.engines)]
        flying: dict[int, Step] = {}
        for entry in self.entries:
            event = entry.event
            if type(event) is ev.StepDone:
                step = flying.pop(event.engine)
                assert step.q0 == event.q0
                walk_step(step, event, running[event.engine], passes[event.engine])
            elif type(event) is ev.DeviceLost:
                flying.pop(event.engine, None)
                running[event.engine] = []
            for action in entry.actions:
                if type(action) is Step:
                    assert action.engine not in flying, "two steps in one slot"
                    flying[action.engine] = action
        assert not flying
        return passes

    def times(self) -> tuple[list[int], list[int]]:
        recorder = self.simulation.recorder
        return recorder.first_token_ps.tolist(), recorder.end_ps.tolist()

    def others(self) -> list[tuple[Any, ...]]:
        """Copies and switches with their times."""
        found = []
        for entry in self.entries:
            for action in entry.actions:
                if type(action) is act.Copy:
                    name = (action.purpose, action.engine, action.rows, action.tokens)
                    found.append((entry.t, *name))
                elif type(action) is act.Switch:
                    found.append((entry.t, "switch", action.engine, action.rows, []))
        return sorted(found)

    def columns(self) -> dict[str, list[int]]:
        names = ("status", "engine", "produced", "preemptions", "recomputed", "suspensions")
        return {name: getattr(self.table, name).tolist() for name in (*names, "migrations")}

    def everything(self) -> dict[str, Any]:
        return {
            "passes": self.passes(),
            "times": self.times(),
            "others": self.others(),
            "columns": self.columns(),
            "reasons": sorted(self.reasons.items()),
        }


def walk_step(
    step: Step, done: ev.StepDone, running: list[int], passes: list[tuple[Any, ...]]
) -> None:
    """Unroll a step as far as it ran: append its passes, bring `running` up to date in place."""
    ends: dict[int, list[int]] = {}
    for row, offset, _ in done.finished:
        ends.setdefault(offset, []).append(row)
    walker = unroll(step, running)
    after = [row for row in running if row not in set(step.left)] + list(step.joined)
    finished: list[int] | None = None
    for k in range(done.passes):
        one = walker.send(finished)  # type: ignore[arg-type]
        finished = ends.get(k, [])
        assert set(finished) <= set(one.decodes) | {row for row, _, _, last in one.chunks if last}
        passes.append((step.q0 + k, sorted(one.decodes), sorted(one.chunks), sorted(finished)))
        gone = set(finished)
        after = [row for row in one.decodes if row not in gone]
        after += [row for row, _, _, last in one.chunks if last and row not in gone]
    if done.passes == step.n or done.ended_by == "finish":
        # The core and the backend agree on where the step ends.
        assert next(iter_rest(walker, finished), None) is None
    running[:] = after


def iter_rest(walker: Any, finished: Any) -> Any:
    """What is left of a walk after `finished` is sent."""
    try:
        yield walker.send(finished)
    except StopIteration:
        return


Checker = Callable[[Runtime, Entry], None]


def build(
    case: Case,
    *,
    reference: bool = False,
    checker: Checker | None = None,
    body_factory: BodyFactory | None = None,
) -> Outcome:
    """Set a case up: everything is scheduled, nothing has run."""
    table = Table([row.prompt for row in case.rows], [row.budget for row in case.rows])
    plan = case.plan()
    home = ToyCost(case.ranks, copy_ps=case.copy_ps)

    def partition(layout: str) -> ToyCost:
        return ToyCost(case.ranks // 2) if layout == "half" else home

    runtime = Runtime(
        table,
        plan,
        build_policy(find_preset(case.preset), case.overrides),
        reference=reference,
        page_keys=case.page_keys() if case.prefix else None,
        advisor=ToyAdvisor(home, partition),
        body_factory=body_factory,
    )
    entries: list[Entry] = []

    def observe(event: ev.Event, now: int, actions: list[act.Action]) -> None:
        entries.append(Entry(now, event, list(actions)))
        if checker is not None:
            checker(runtime, entries[-1])

    simulation = Simulation(
        runtime,
        table,
        plan,
        home,
        np.array([row.output for row in case.rows], dtype=np.int32),
        partition_cost=partition,
        observer=observe,
    )
    at: dict[int, list[int]] = {}
    for index, row in enumerate(case.rows):
        at.setdefault(row.arrival, []).append(index)
    for time in sorted(at):
        simulation.arrive(at[time], time)
    simulation.close_input(max(at))
    for kind, time, one, two in case.troubles:
        schedule(simulation, case, kind, time, one, two)
    return Outcome(case=case, table=table, simulation=simulation, entries=entries)


def schedule(simulation: Simulation, case: Case, kind: str, time: int, one: int, two: int) -> None:
    """One trouble; numbers are taken modulo what exists."""
    engine, row = one % case.engines, one % len(case.rows)
    if kind in ("lost", "back", "notice"):
        simulation.add_fault(Fault(time, kind, engine), 1)
    elif kind == "slow":
        simulation.add_fault(Fault(time, kind, engine, 300 + 500 * (two % 8)), 1)
    elif kind == "cancel":
        simulation.inject(ev.Cancelled([row, (row + two) % len(case.rows)]), time)
    elif kind == "row_failed":
        simulation.inject(ev.RowFailed(row, "bad"), time)
    elif kind == "pool_short":
        rank = two % case.ranks
        simulation.inject(ev.PoolShort(engine, rank, 1 + two % (case.hbm_pages // 2)), time)
    elif kind == "plan":
        simulation.inject(ev.PlanChanged(1 + one % 64, 1 + two % 8), time)
    else:
        raise ValueError(kind)


def run(case: Case, **options: Any) -> Outcome:
    """Run a case to its end."""
    outcome = build(case, **options)
    outcome.simulation.run()
    return outcome


# -- strategies -----------------------------------------------------------------------------------

SPAN_PS = 1_500_000
"""About as long as a small case takes."""


@st.composite
def rows(draw: st.DrawFn, *, most: int = 20, late: bool = True, longest: int = 60) -> Row:
    prompt = draw(st.integers(1, longest))
    budget = draw(st.integers(1, longest))
    group = draw(st.integers(-1, 2))
    return Row(
        prompt=prompt,
        budget=budget,
        output=draw(st.integers(1, budget)),
        arrival=draw(st.one_of(st.just(0), st.integers(0, SPAN_PS))) if late else 0,
        group=group,
        shared=draw(st.integers(0, prompt)) if group >= 0 else 0,
    )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    presets: tuple[str, ...] = PRESETS,
    kinds: tuple[str, ...] = (),
    max_engines: int = 3,
    most_rows: int = 16,
    prefix: bool | None = None,
    scarce: bool = False,
) -> Case:
    """A case of any preset, with up to 4 troubles of the given kinds.

    Engines that share a scarce host pool see each other's leases, which steps of different lengths
    take at different times; `scarce` allows such cases.
    """
    preset = draw(st.sampled_from(presets))
    trouble = st.tuples(
        st.sampled_from(kinds or ("cancel",)),
        st.integers(0, SPAN_PS),
        st.integers(0, 63),
        st.integers(0, 63),
    )
    engines_per_node = draw(st.sampled_from((1, 1, 2)))
    engines = draw(st.integers(1, max_engines))
    hosts = (0, 5, 30, LARGE_HOST) if scarce or engines == 1 else (0, LARGE_HOST)
    return Case(
        preset=preset,
        engines_per_node=engines_per_node,
        rows=tuple(draw(st.lists(rows(), min_size=1, max_size=most_rows))),
        engines=engines,
        ranks=draw(st.sampled_from((1, 1, 2, 4))),
        hbm_pages=draw(st.one_of(st.integers(4, 40), st.integers(20, 200))),
        host_pages=draw(st.sampled_from(hosts)),
        page=draw(st.sampled_from((4, 8))),
        budget=draw(st.sampled_from((8, 16, 64, 200))),
        seqs=draw(st.integers(1, 8)),
        prefix=draw(st.booleans()) if prefix is None else prefix,
        troubles=tuple(draw(st.lists(trouble, max_size=4))) if kinds else (),
        copy_ps=draw(st.sampled_from((10, 170, 3000))),
    )
