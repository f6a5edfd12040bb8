"""Sets a simulation up from a job and a trace: names, plan, cost, runtime. Nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.errors import UserError
from batchgen.events import Arrived, Event, InputClosed
from batchgen.log import Header
from batchgen.logbook import DecisionLog
from batchgen.machine import Machine, resolve, with_way_out
from batchgen.outputs import Outputs, outputs_of
from batchgen.planning import plan_options
from batchgen.policy.presets import (
    CAPABILITIES,
    Policy,
    Preset,
    build_policy,
    find_preset,
    part_class,
)
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table
from batchgen.sim.cluster import Simulation
from batchgen.sim.faults import NORMAL_SPEED, OWN_SKEW, Fault, check_faults, load_faults
from batchgen.sim.stages import check_conversations, further_stages, total_outputs
from batchgen.simjob import SimJob

if TYPE_CHECKING:
    from batchgen.cost.capacity import Capacity
    from batchgen.cost.partition import PartitionPlanner
    from batchgen.trace.table import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A simulation that is ready to run, and what it was made from. faults: in the order of their
    times; staged: rows have bodies;
    true_tokens: of all stages of each row."""

    machine: Machine
    outputs: Outputs
    policy: Policy
    sizes: Capacity
    simulation: Simulation
    faults: list[Fault]
    arrival_ps: np.ndarray[Any, np.dtype[np.int64]]
    staged: bool
    true_tokens: np.ndarray[Any, np.dtype[np.int64]]
    log: DecisionLog | None


def set_up(
    job: SimJob,
    trace: Trace,
    *,
    reference: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> Setup:
    """Everything of a run but the running. Raises UserError for anything wrong with the job.

    reference: one pass per step (see `Runtime`).
    """
    overrides = dict(job.overrides)
    preset = find_preset(job.policy)
    if job.oracle and not knows_lengths(preset):
        overrides.setdefault("predictor.part", "oracle")
    policy = build_policy(preset, overrides, capabilities_of(job))
    options = plan_options(overrides, preset.plan)
    try:
        machine = resolve(job, trace.expert_skew)
    except UserError as error:
        raise with_way_out(error, job, trace) from None
    model, layout, planner = machine.model, machine.layout, machine.planner
    plan, sizes = machine.plan, machine.sizes
    faults: list[Fault] = []
    if job.faults is not None:
        faults = load_faults(job.faults, job.gpus, machine.gpus_per_node)
        check_faults(faults, machine, job)
    skewed = Skewed(job, planner)
    for fault in faults:
        if fault.kind == "skew":
            skewed(fault.speed)  # what it refuses, it refuses now
    outputs = outputs_of(job, trace, model, options)
    budgets = outputs.budgets
    check_conversations(trace, budgets, plan.max_context, model.name, job.trace)
    further = further_stages(trace, budgets, plan.max_context, job.body)
    table = Table(trace.prompt_tokens, budgets, group=trace.group)
    true_tokens = total_outputs(trace, budgets)
    told = "lengths" in policy["predictor"].needs
    if told:
        table.predicted[:] = true_tokens
    use_prefix = preset.prefix_cache if options.prefix_cache is None else options.prefix_cache
    runtime = Runtime(
        table,
        plan,
        policy,
        reference=reference,
        page_keys=page_keys_of(trace, plan.page_tokens) if use_prefix else None,
        advisor=planner,
        bodies=None if further is None else further.bodies,
    )
    bodies = "" if further is None else further.name
    log = None
    if job.log != "off":
        log = decision_log(job, runtime, job.policy, overrides, bodies, told=told)
    simulation = Simulation(
        runtime,
        table,
        plan,
        planner.home,
        outputs.tokens,
        stages=None if further is None else further.outputs,
        layout_cost=planner.cost,
        skewed=skewed,
        observer=log,
        progress=progress,
    )
    simulation.add_faults(faults, layout.gpus_per_engine)
    arrival_ps = trace.arrival_ps if job.arrivals == "trace" else np.zeros(len(table), np.int64)
    schedule_arrivals(simulation, arrival_ps)
    return Setup(
        machine=machine,
        outputs=outputs,
        policy=policy,
        sizes=sizes,
        simulation=simulation,
        faults=faults,
        arrival_ps=arrival_ps,
        staged=further is not None,
        true_tokens=true_tokens,
        log=log,
    )


class Skewed:
    """Costs of a job under other expert skews, by thousandths of the exponent; each made once."""

    def __init__(self, job: SimJob, own: PartitionPlanner) -> None:
        self._job = job
        self._planners = {OWN_SKEW: own}

    def __call__(self, skew: int) -> PartitionPlanner:
        """Raises UserError for a skew that the costs do not know."""
        if skew not in self._planners:
            self._planners[skew] = resolve(self._job, skew / NORMAL_SPEED).planner
        return self._planners[skew]


def page_keys_of(trace: Trace, page_tokens: int) -> Callable[[int], Sequence[int]] | None:
    """Chained keys of a row's full prompt pages, from the trace's prefix blocks; None if it has
    none.

    A page lies in one block when pages divide blocks; its key is the block's id and its place
    there.
    """
    block = trace.prefix_block_tokens
    if not block or block % page_tokens:
        return None
    per_block = block // page_tokens
    offsets, blocks, prompts = trace.prefix_offsets, trace.prefix_blocks, trace.prompt_tokens
    cache: dict[int, list[int]] = {}

    def keys(row: int) -> list[int]:
        found = cache.get(row)
        if found is None:
            ids = blocks[offsets[row] : offsets[row + 1]]
            pages = (ids[:, None] * per_block + np.arange(per_block)).ravel()
            found = pages[: int(prompts[row]) // page_tokens].tolist()
            cache[row] = found
        return found

    return keys


def knows_lengths(preset: Preset) -> bool:
    """Whether the preset's own predictor is there to be told true lengths."""
    return "lengths" in part_class("predictor", preset.parts["predictor"]).needs


def capabilities_of(job: SimJob) -> frozenset[str]:
    """What the simulator has for a job: everything, but true lengths with --oracle only."""
    return CAPABILITIES if job.oracle else CAPABILITIES - {"lengths"}


def decision_log(
    job: SimJob,
    runtime: Runtime,
    preset: str,
    overrides: dict[str, str],
    bodies: str,
    *,
    told: bool,
) -> DecisionLog:
    """An empty log whose header can make this runtime again. told: `predicted` has true lengths."""
    table, keys = runtime.table, runtime.page_keys
    log = DecisionLog(
        Header(
            backend="sim",
            full=job.log == "full",
            plan=runtime.plan,
            preset=preset,
            overrides=overrides,
            capabilities=sorted(capabilities_of(job)),
            prompt_tokens=table.prompt.tolist(),
            budget_tokens=table.budget.tolist(),
            groups=table.group.tolist(),
            predicted=table.predicted.tolist() if told else None,
            page_keys=None if keys is None else [list(keys(row)) for row in range(len(table))],
            bodies=bodies,
        )
    )
    log.listen(runtime.bodies)
    return log


def schedule_arrivals(simulation: Simulation, arrival_ps: np.ndarray[Any, Any]) -> None:
    """One event per distinct arrival time, in order; rows are listed when they come."""
    order = np.argsort(arrival_ps, kind="stable")
    times = arrival_ps[order]
    starts = np.flatnonzero(np.r_[True, times[1:] != times[:-1]])
    bounds = [*starts.tolist(), len(times)]

    def events() -> Iterator[tuple[int, Event]]:
        for start, end in pairwise(bounds):
            yield int(times[start]), Arrived(order[start:end].tolist())
        yield int(times[-1]), InputClosed()

    simulation.take_input(events())
