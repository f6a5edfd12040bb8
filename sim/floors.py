"""What no schedule of a simulated job beats: hands machine and rows to `batchgen.cost.bounds`.

It knows what the policy may do: share prefixes, and leave the layout for the tail.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.cost.bounds import Floor, Rows, bounds
from batchgen.report.record import STATUS_DONE
from batchgen.sim.faults import NORMAL_SPEED, OWN_SKEW, load_faults

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.cost.partition import PartitionPlanner
    from batchgen.plan import Plan
    from batchgen.sim.setup import Setup
    from batchgen.simjob import SimJob
    from batchgen.trace.table import Trace


def run_bounds(
    job: SimJob, ready: Setup, trace: Trace, columns: dict[str, NDArray[Any]]
) -> dict[str, float]:
    """The bounds of a run in seconds, by the rows that ended well (`columns` of its record); empty
    when troubles made a device faster than it is, or passes cheaper."""
    if job.faults is not None:
        faults = load_faults(job.faults, job.gpus, ready.machine.gpus_per_node)
        own = round(trace.expert_skew * NORMAL_SPEED)
        least = {"slow": NORMAL_SPEED, "skew": own}
        if any(OWN_SKEW < fault.speed < least.get(fault.kind, 0) for fault in faults):
            return {}
    simulation, planner = ready.simulation, ready.machine.planner
    switches = "switch" in ready.policy["tail"].needs
    shares = simulation.runtime.page_keys is not None
    plan = simulation.plan
    floors = floors_of(plan, planner, switches=switches)
    rows = rows_of(trace, columns, shares=shares)
    return asdict(bounds(floors, len(plan.engines), rows))


def floors_of(plan: Plan, planner: PartitionPlanner, *, switches: bool) -> list[Floor]:
    """The engine as it is and, if it may switch, in the layouts of its tail."""
    layouts = [(planner.home, plan.engines[0].hbm_pages)]
    if switches:
        layouts += planner.tails()
    return [
        Floor(
            cost,
            kv_tokens=pages * plan.page_tokens,
            seats=plan.max_num_seqs,
            token_budget=plan.token_budget,
        )
        for cost, pages in layouts
    ]


def rows_of(trace: Trace, columns: dict[str, NDArray[Any]], *, shares: bool) -> Rows:
    """What rows that ended well needed. Of rows with stages, follow-ups count as prompts, and their
    decodes as if these came last."""
    done = np.flatnonzero(columns["status"] == STATUS_DONE)
    prompts = columns["prompt_tokens"][done].astype(np.int64)
    stages = columns["stages"][done] if "stages" in columns else np.ones(len(done), dtype=np.int64)
    first = np.where(stages > 1, np.minimum(trace.prompt_tokens[done], prompts), prompts)
    arrivals = columns["arrival_ps"]
    fresh, least = None, 0
    if shares and trace.prefix_blocks.size:
        fresh, least = fresh_tokens(trace.take(done), prompts)
    return Rows(
        prompt_tokens=prompts,
        decodes=np.maximum(columns["output_tokens"][done] - stages, 0),
        context=first.astype(np.int64),
        arrival_ps=arrivals[done] - (arrivals.min() if len(arrivals) else 0),
        fresh_tokens=fresh,
        least_prompt_tokens=least,
    )


def fresh_tokens(trace: Trace, prompts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Tokens that each row computes itself whatever it shares, and the least that all compute: each
    shared block once, as far as its longest user fills it."""
    block, offsets = trace.prefix_block_tokens, trace.prefix_offsets
    counts = np.diff(offsets)
    shared = np.minimum(counts * block, trace.prompt_tokens.astype(np.int64))
    number = np.arange(int(counts.sum())) - np.repeat(offsets[:-1] - offsets[0], counts)
    filled = np.minimum(block, np.repeat(trace.prompt_tokens, counts) - number * block)
    _, which = np.unique(trace.prefix_blocks, return_inverse=True)
    most = np.zeros(int(which.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(most, which, filled)
    own = prompts - shared
    return np.maximum(own, 1), int(most.sum() + own.sum())
