"""Runs a case of core_cases through batchgen.sim, for comparison with the plain walker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from core_cases import Case

from batchgen import events as ev
from batchgen.log import Entry
from batchgen.runtime.core import Runtime
from batchgen.sim.cluster import Simulation
from batchgen.sim.faults import Fault


def simulate_case(
    case: Case,
    *,
    checker: Callable[[Runtime, Entry], None] | None = None,
    **options: Any,
) -> tuple[Simulation, list[Entry]]:
    """The case in the simulator; troubles of kind "slow" stand until changed."""
    runtime = case.runtime(**options)
    advisor = case.advisor()
    entries: list[Entry] = []

    def observe(event: ev.Event, now: int, actions: list[Any]) -> None:
        entries.append(Entry(now, event, list(actions)))
        if checker is not None:
            checker(runtime, entries[-1])

    simulation = Simulation(
        runtime,
        runtime.table,
        case.plan(),
        advisor.home,
        np.array([row.output for row in case.rows], dtype=np.int32),
        stages=lambda row, stage: case.rows[row].stages[stage - 1][1],
        layout_cost=advisor.cost,
        observer=observe,
    )
    for kind, time, one, two in case.troubles:
        _schedule(simulation, case, kind, time, one, two)
    at: dict[int, list[int]] = {}
    for index, row in enumerate(case.rows):
        at.setdefault(row.arrival, []).append(index)
    for time in sorted(at):
        simulation.arrive(at[time], time)
    simulation.close_input(max(at))
    simulation.run()
    return simulation, entries


def _schedule(simulation: Simulation, case: Case, kind: str, time: int, one: int, two: int) -> None:
    engine, row, gpu = one % case.engines, one % len(case.rows), two % case.devices
    number = engine * case.devices + gpu
    if kind in ("lost", "back", "notice"):
        simulation.add_fault(Fault(time, kind, number, 1000, time), case.devices)
    elif kind == "slow":
        factor = 1000 if two % 3 == 0 else 300 + 500 * (two % 8)
        simulation.add_fault(Fault(time, kind, number, factor), case.devices)
    elif kind == "cancel":
        simulation.inject(ev.Cancelled([row, (row + two) % len(case.rows)]), time)
    elif kind == "row_failed":
        simulation.inject(ev.RowFailed(row, "bad"), time)
    elif kind == "pool_short":
        short = ev.PoolShort(engine, two % case.ranks, 1 + two % (case.hbm_pages // 2))
        simulation.inject(short, time)
    elif kind == "plan":
        simulation.inject(ev.PlanChanged(1 + one % 64, 1 + two % 8), time)
