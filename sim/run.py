"""`simulate(job)`: load the trace, set the simulation up, run it, return the record."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import batchgen
from batchgen.catalog.systems import system_names
from batchgen.cost.residuals import Kind, find
from batchgen.policy.presets import PRESETS, find_preset, label_of
from batchgen.report.ranks import kendall_tau_b
from batchgen.report.record import RunRecord
from batchgen.sim.barrier import barrier_s
from batchgen.sim.floors import run_bounds
from batchgen.sim.resources import resources_s
from batchgen.sim.setup import Setup, set_up
from batchgen.sim.tail import tail_causes_s
from batchgen.simjob import SimJob
from batchgen.trace.schema import load

if TYPE_CHECKING:
    from batchgen.outputs import Outputs
    from batchgen.plan import Plan
    from batchgen.trace.table import Trace


def simulate(
    job: SimJob,
    *,
    progress: Callable[[int, int, int], None] | None = None,
    trace: Trace | None = None,
    part: bool = False,
) -> RunRecord:
    """Run one simulation (`batchgen.simjob.Simulate`). Raises UserError for anything wrong with the
    job."""
    began = time.perf_counter()
    if trace is None:
        trace = load(job.trace, max_rows=job.limit)
    ready = set_up(job, trace, progress=progress)
    simulation, machine = ready.simulation, ready.machine
    with chdir("."):  # bodies of users may go elsewhere; paths of the job are relative
        simulation.run()
    model, gpu, layout = machine.model, machine.gpu, machine.layout
    recorder, plan = simulation.recorder, simulation.plan
    per_rank = layout.gpus_per_rank
    rows = recorder.rows(simulation.table, ready.arrival_ps) | (
        {"stages": simulation.table.stage + 1} if ready.staged else {}
    )
    steps = recorder.steps(machine.planner.home)
    return RunRecord(
        policy=label_of(job.policy),
        backend="sim",
        model=model.name,
        gpu=gpu.name,
        layout=str(layout),
        num_gpus=layout.num_gpus,
        config={
            "job": {**asdict(job), "overrides": [list(pair) for pair in job.overrides]},
            "layout_reason": machine.layout_reason,
            "cost": machine.planner.home.describe(),
            "plan": plan_summary(plan),
            "capacity": asdict(ready.sizes),
            "policy": describe_policy(ready.policy),
            "trace": {"name": trace.name, "rows": len(trace), "sha256": file_digest(job.trace)},
            "batchgen": batchgen.__version__,
            "python": platform.python_version(),
            "seed": job.seed,
            "events": simulation.events,
            "why_failed": recorder.why_failed(),
            **cut_at_context(ready.outputs),
            "tail_causes_s": {} if part else tail_of(ready, rows, steps),
            "resources_s": {} if part else resources_s(ready, gpu),
            "barrier_s": {} if part else barrier_of(ready, steps),
            "bounds": {} if part else run_bounds(job, ready, trace, rows),
            "predictor": {} if part else predictor_of(ready),
            "residual": asdict(find(kind_of_run(job, ready))),
        },
        rows=rows,
        row_reasons=recorder.row_reasons(),
        steps=steps,
        marks=recorder.marks,
        engines=[
            {
                "engine": spec.engine,
                "node": spec.node,
                "num_gpus": spec.num_gpus,
                "hbm_pages_total": spec.hbm_pages * spec.num_ranks,
                "page_tokens": plan.page_tokens,
                "peak_flops": gpu.peak_for(model.weight_dtype) * spec.num_ranks * per_rank,
                "peak_bw": gpu.hbm_bytes_per_s * spec.num_ranks * per_rank,
                **(
                    {"pipeline": spec.engine // layout.pp, "stage": spec.engine % layout.pp}
                    if layout.pp > 1
                    else {}
                ),
            }
            for spec in plan.engines
        ],
        wall_s=time.perf_counter() - began,
        gpu_price_per_hour=gpu.price_per_hour_usd,
        decisions=ready.log.packed() if ready.log is not None else None,
    )


def cut_at_context(outputs: Outputs) -> dict[str, Any]:
    """Rows that the context has ended; empty if there is none."""
    if not outputs.num_cut:
        return {}
    return {"cut_at_context": {"cut_rows": outputs.num_cut, "context_tokens": outputs.max_context}}


def predictor_of(ready: Setup) -> dict[str, Any]:
    """How well predicted lengths order the rows that have any, and how many these are; empty: none.

    tau: Kendall's tau-b against true lengths, all stages of a row together; None: all are alike.
    """
    predicted = ready.simulation.table.predicted
    known = predicted > 0
    if not known.any():
        return {}
    return {
        "tau": kendall_tau_b(predicted[known], ready.true_tokens[known]),
        "rows": int(known.sum()),
    }


def tail_of(ready: Setup, rows: dict[str, Any], steps: Any) -> dict[str, float]:
    """Where the last rows come from; empty for rows with bodies, which sleep when they like."""
    if ready.staged:
        return {}
    simulation, layout = ready.simulation, ready.machine.layout
    cost = ready.machine.planner.home
    return tail_causes_s(
        rows,
        steps,
        simulation.recorder.stints,
        ready.faults,
        simulation.recorder.mean_loads(cost.num_ranks),
        cost,
        simulation.plan,
        (layout.gpus_per_engine, layout.pp),
    )


def barrier_of(ready: Setup, steps: Any) -> dict[str, float]:
    """How long ranks wait for the others; empty where engines have one."""
    simulation, layout = ready.simulation, ready.machine.layout
    cost = ready.machine.planner.home
    if cost.num_ranks == 1:
        return {}
    return barrier_s(
        steps,
        ready.faults,
        simulation.recorder.mean_loads(cost.num_ranks),
        cost,
        len(simulation.plan.engines),
        (layout.gpus_per_engine, layout.pp),
    )


PLACES = ("plan.weights", "plan.kv", "plan.attention", "plan.gpu_batches", "plan.resident_share")


def kind_of_run(job: SimJob, ready: Setup) -> Kind:
    """What decides how far the run may be from a real one."""
    machine = ready.machine
    cost, model = machine.planner.home.describe(), machine.model
    return Kind(
        **(cost.get("spread") or {}),
        costs=str(cost["kind"]),
        cluster=job.cluster or "none",
        gpu=machine.gpu.name,
        engine=job.policy,
        model_kind=model.kind,
        changed=_costs_of_its_own(job.policy)
        or cost.get("block_schedule", "free") != "free"  # no published time is of such a run
        or any(key.startswith(("cost.", *PLACES)) for key, _ in job.overrides),
        several_gpus=machine.layout.gpus_per_engine > 1,
        guessed=bool(cost.get("extrapolated")),
    )


def _costs_of_its_own(policy: str) -> bool:
    """Whether a system of the user's brings constants that no system of the catalog has."""
    if policy in PRESETS or policy in system_names():
        return False
    costs = find_preset(policy).costs
    return bool(costs) and all(costs != find_preset(name).costs for name in system_names())


def plan_summary(plan: Plan) -> dict[str, Any]:
    """The plan without the list of engines (they are in the record)."""
    return {
        "page_tokens": plan.page_tokens,
        "boundary": plan.boundary,
        "token_budget": plan.token_budget,
        "max_num_seqs": plan.max_num_seqs,
        "hbm_pages_per_rank": plan.engines[0].hbm_pages,
        "host_pages_per_engine": plan.engines[0].host_pages,
        "prefill_engines": sum(spec.role == "prefill" for spec in plan.engines),
        "num_engines": len(plan.engines),
        "ranks_per_engine": plan.engines[0].num_ranks,
        "b_attn": plan.b_attn,
        "b_moe": plan.b_moe,
        "depth": plan.depth,
    }


def describe_policy(policy: Any) -> dict[str, Any]:
    """Part and options of every slot."""
    return {
        slot: {"part": type(part).__name__, **asdict(part.config)}
        for slot, part in policy.parts.items()
    }


def file_digest(path: str) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
