"""Agreement (c): the same rows, arrivals and costs through exec on a stub clock and through sim.

The executor runs first, so that the simulator can be given the output lengths that it produced.
Only `batchgen validate` opens both backends; nothing is decided or printed here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen import events as ev
from batchgen.cli.endings import not_ended
from batchgen.cli.handover import Handover, handover
from batchgen.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchgen.cost.api import CostModel
    from batchgen.exec.prepare import Prepared
    from batchgen.logbook import DecisionLog
    from batchgen.sequence import Table

Timed = tuple[int, ev.Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """When rows arrive (ps, per row) and what happens from outside (cancellations, by time)."""

    arrivals_ps: list[int]
    events: list[Timed]


def compare_backends(
    model: Path,
    input_: Path,
    policy: str,
    *,
    max_tokens: int = 96,
    hbm_pages: int | None = None,
    host_pages: int | None = None,
    rate: float = 0.2,
    cancel: int = 0,
    gpu: str = "h100",
    seed: int = 0,
    limit: int | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    reference: bool = False,
    body: str | None = None,
) -> dict[str, Any]:
    """Run `policy` on both backends; the dict says whether the logs are equal, which rows did not
    end with their output (equal logs of rows that all failed are no agreement), what happened.

    hbm_pages None: a third of what the rows need at most, in pages that suit their length.
    rate: arrivals per pass time of one row, 0 for all at once. cancel: rows to cancel on the way.
    reference: one pass per step. body: module:function that every row runs. `first_difference` is a
    line of the log from 1, the header being line 1. Raises UserError for anything wrong with model,
    input or numbers.
    """
    from batchgen.cost.build import build_cost
    from batchgen.exec.drive import clocked
    from batchgen.exec.job import ExecJob
    from batchgen.exec.prepare import prepare
    from batchgen.hardware import load_gpu
    from batchgen.layout import Layout
    from batchgen.model import load_model

    if not rate >= 0:
        raise UserError(f"an arrival rate of {rate}", remedy="give 0 (all at once) or more")
    if cancel < 0:
        raise UserError(f"{cancel} rows to cancel", remedy="give 0 or more")

    settings = tuple(overrides)

    def job(pages: int | None) -> ExecJob:
        return ExecJob(
            model=model,
            input=input_,
            output=Path(os.devnull),
            policy=policy,
            overrides=settings,
            max_tokens=max_tokens,
            limit=limit,
            hbm_pages=pages,
            host_pages=host_pages,
            seed=seed,
            body=body,
        )

    machine = load_gpu(gpu)
    prepared = prepare(job(hbm_pages))
    if hbm_pages is None:
        settings += small_pages(prepared)
        prepared = prepare(job(None))
        prepared = prepare(job(scarce_pages(prepared)))
    cost = build_cost(
        load_model(prepared.folder),
        machine,
        Layout(),
        plan_b_attn=prepared.plan.b_attn,
        plan_b_moe=prepared.plan.b_moe,
    )
    load = make_load(prepared.table, cost, rate=rate, cancel=cancel, seed=seed)
    ran, exec_log = clocked(
        prepared, cost, arrivals_ps=load.arrivals_ps, events=load.events, reference=reference
    )
    executed = list(exec_log.lines())
    told = handover(executed)
    table, sim_log, end_ps = simulate_again(prepared, told, cost, load, reference=reference)
    simulated = list(sim_log.lines())
    first = first_difference(executed, simulated)
    at = None if first is None else first - 1
    driver = ran.driver
    missing = not_ended([driver.runtime.table, table], ran.reasons, driver.why, load.events)
    return {
        "policy": policy,
        "equal": first is None,
        "all_ended": not missing,
        "not_ended": missing,
        "first_difference": first,
        "rows": len(table),
        "events": len(executed) - 1,
        "cuts": sum('"ended_by":"cut"' in line for line in executed),
        "preemptions": int(table.preemptions.sum()),
        "suspensions": int(table.suspensions.sum()),
        "adopted": sum(line.count('"adopt"') for line in executed),
        "early_ends": sum(reason == "stop" for reason in ran.reasons.values()),
        "extended": int(table.stage.sum()),
        "cancelled": sum(reason == "cancelled" for reason in ran.reasons.values()),
        "bct_s": end_ps / 1e12,
        "tokens": sum(map(len, ran.tokens.values())),
        "exec_line": None if at is None else "".join(executed[at : at + 1]),
        "sim_line": None if at is None else "".join(simulated[at : at + 1]),
    }


def first_difference(executed: Sequence[str], simulated: Sequence[str]) -> int | None:
    """The first line, from 1, in which two logs differ."""
    pairs = enumerate(zip_longest(executed, simulated), start=1)
    return next((number for number, (left, right) in pairs if left != right), None)


def small_pages(prepared: Prepared) -> tuple[tuple[str, str], ...]:
    """Pages for short rows: an eighth of the longest output, so they grow; a boundary per page.

    With pages longer than their outputs rows would hardly ever need another one, and steps much
    shorter than a page would hardly ever be cut.
    """
    page = prepared.plan.page_tokens
    longest = int(prepared.table.budget.max())
    small = page
    while small > 4 and small * 8 > longest:
        small //= 2
    chosen = {"plan.page_tokens": small, "plan.boundary": small}
    return tuple((k, str(v)) for k, v in chosen.items() if k not in prepared.overrides)


def scarce_pages(prepared: Prepared) -> int:
    """A third of what the rows need at most, so that rows have to give way to each other; room for
    one that its body extends."""
    from batchgen.memory.pool import pages_for

    page, table = prepared.plan.page_tokens, prepared.table
    worst = [pages_for(int(tokens), page) for tokens in table.prompt + table.budget]
    longest = max(worst) * (1 if prepared.body is None else 4)
    return max(sum(worst) // 3, longest + 1)


def make_load(table: Table, cost: CostModel, *, rate: float, cancel: int, seed: int) -> Load:
    """Poisson arrivals, and cancellations of early rows in the middle of their output."""
    num_rows = len(table)
    rng = np.random.default_rng(seed)
    pass_ps = cost.pass_one_ps(1, int(table.prompt.mean()), samples=1)
    arrivals = np.zeros(num_rows, dtype=np.int64)
    if rate > 0:
        arrivals = np.cumsum(rng.exponential(pass_ps / rate, num_rows)).astype(np.int64)
        arrivals -= arrivals[0]
    # Early rows with long budgets are likely to run by then, in a step that is worth cutting; one
    # that waits would leave the queue and cut nothing.
    early = sorted(range(max(cancel, num_rows // 3)), key=lambda row: -table.budget[row % num_rows])
    events: list[Timed] = []
    for row in [row for row in early if row < num_rows][:cancel]:
        passes = int(rng.uniform(0.3, 0.9) * int(table.budget[row]))
        events.append((int(arrivals[row]) + pass_ps * passes, ev.Cancelled([row])))
    return Load(arrivals_ps=arrivals.tolist(), events=sorted(events, key=lambda item: item[0]))


def simulate_again(
    prepared: Prepared, told: Handover, cost: CostModel, load: Load, *, reference: bool
) -> tuple[Table, DecisionLog, int]:
    """The simulator's half: its table, its log, and the time of the last end (ps).

    Stages that ended by themselves have the length that exec produced; the others never showed
    theirs, so their budget stands for it. Bodies say what they said there.
    """
    from batchgen.bodies import Scripted
    from batchgen.sim.cluster import Simulation
    from batchgen.sim.setup import schedule_arrivals

    table = prepared.fresh_table()
    bodies = None if prepared.body is None else Scripted(table, told.script)
    runtime = prepared.runtime(table=table, reference=reference, bodies=bodies)
    log = prepared.log(reference=reference)
    log.listen(runtime.bodies)
    simulation = Simulation(
        runtime,
        table,
        prepared.plan,
        cost,
        np.asarray(told.first(table), dtype=np.int32),
        reasons=told.reasons,
        stages=told.further,
        observer=log,
    )
    schedule_arrivals(simulation, np.asarray(load.arrivals_ps, dtype=np.int64))
    for at_ps, event in load.events:
        simulation.inject(event, at_ps)
    simulation.run()
    return table, log, int(simulation.recorder.end_ps.max())
