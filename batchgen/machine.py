"""What a simulated job runs on: its names resolved, the plan and the costs. Nothing runs here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchgen.catalog.systems import find_cluster
from batchgen.cost.build import build_cost
from batchgen.cost.capacity import Capacity
from batchgen.cost.efficiency import (
    BESIDE_KERNELS,
    BESIDE_PROFILES,
    efficiency_of,
    refuse_constants,
)
from batchgen.cost.partition import PartitionPlanner
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec, load_gpu
from batchgen.layout import Layout, default_layout, parse_layout
from batchgen.layouts import candidates
from batchgen.model import ModelSpec, load_model
from batchgen.plan import Plan
from batchgen.planning import build_plan, plan_options
from batchgen.policy.presets import find_preset
from batchgen.simjob import SimJob
from batchgen.trace.schema import load
from batchgen.trace.table import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a job runs on: the names of the job resolved, the plan, and the cost of it all."""

    model: ModelSpec
    gpu: GpuSpec
    gpus_per_node: int
    layout: Layout
    layout_reason: str
    plan: Plan
    sizes: Capacity
    planner: PartitionPlanner


def gpus_of(job: SimJob) -> tuple[GpuSpec, int]:
    """The GPU of a job, and how many of the job's share a host."""
    if job.cluster is None:
        gpu = load_gpu(job.gpu)
        node = gpu.gpus_per_node
    else:
        cluster = find_cluster(job.cluster)
        gpu, node = load_gpu(cluster.gpu), cluster.gpus_per_node
    return gpu, min(job.gpus_per_node or node, job.gpus)


def resolve(job: SimJob, expert_skew: float) -> Machine:
    """What a job runs on. Raises UserError for a name, an option or a layout that is none."""
    overrides, preset = dict(job.overrides), find_preset(job.policy)
    links = find_cluster(job.cluster).costs if job.cluster is not None else {}
    known = {**links, **preset.costs}
    options, efficiency = plan_options(overrides, preset.plan), efficiency_of(overrides, known)
    if job.profile is not None and not Path(job.profile).is_dir():
        refuse_constants(overrides, "--profile has measured everything")
    elif job.profile is not None:
        refuse_constants(overrides, "of the roofline; --profile has it", but=BESIDE_PROFILES)
    elif job.costs == "measured":
        refuse_constants(overrides, "of the roofline; --costs measured has it", but=BESIDE_KERNELS)
    model = load_model(job.model)
    gpu, per_node = gpus_of(job)
    if job.layout is None:
        layout, why = default_layout(model, gpu, job.gpus, per_node)
    else:
        layout, why = parse_layout(job.layout, job.gpus), "given"
    plan, sizes = build_plan(
        model,
        gpu,
        layout,
        preset,
        gpus_per_node=per_node,
        max_context=options.context_of(model),
        options=options,
    )
    home = build_cost(
        model,
        gpu,
        layout,
        plan_b_attn=options.b_attn,
        plan_b_moe=options.b_moe,
        expert_skew=expert_skew,
        profile=job.profile,
        gpus_per_node=per_node,
        efficiency=efficiency,
        costs=job.costs,
        residency=options.residency,
        streamed_bytes=sizes.streamed_bytes,
        disk_bytes=sizes.disk_bytes,
    )
    planner = PartitionPlanner(
        model=model,
        gpu=gpu,
        layout=layout,
        home=home,
        gpus_per_node=per_node,
        expert_skew=expert_skew,
        page_tokens=plan.page_tokens,
        efficiency=efficiency,
        costs=job.costs,
        fixed=options.residency.streams,
        only_home=job.profile is not None and Path(job.profile).is_dir(),
    )
    return Machine(
        model=model,
        gpu=gpu,
        gpus_per_node=per_node,
        layout=layout,
        layout_reason=why,
        plan=plan,
        sizes=sizes,
        planner=planner,
    )


FROM_HOST = (
    {"plan.weights": "spill"},
    {"plan.weights": "spill", "plan.kv": "host"},
    {"plan.weights": "experts", "plan.kv": "host", "plan.attention": "cpu"},
    {"plan.weights": "layers", "plan.kv": "host", "plan.attention": "cpu"},
    {"plan.weights": "disk"},
    {"plan.weights": "disk", "plan.kv": "host", "plan.attention": "cpu"},
    {"plan.weights": "disk", "plan.kv": "disk", "plan.attention": "cpu"},
)
"""Places on the host and its disks for a model that does not fit, those that cost least first."""


def with_way_out(error: UserError, job: SimJob, trace: Trace) -> UserError:
    """`error` of a model that does not fit, with the places on the host, or else on its disks,
    that would hold it and the longest row of the trace."""
    if error.code != "does_not_fit" or any(
        key in ("plan.weights", "plan.kv") for key, _ in job.overrides
    ):
        return error
    model, (_, per_node) = load_model(job.model), gpus_of(job)
    layouts = [job.layout]
    if job.layout is None:
        layouts = [str(layout) for layout in reversed(candidates(model, job.gpus, per_node))]
    longest = int((trace.prompt_tokens.astype(int) + trace.output_tokens).max(initial=0))
    for places in FROM_HOST:
        for layout in layouts:
            changed = replace(job, layout=layout, overrides=(*job.overrides, *places.items()))
            try:
                held = resolve(changed, trace.expert_skew).sizes.hbm_tokens
            except UserError:
                continue
            if held <= longest:
                continue
            options = " ".join(f"--set {key}={value}" for key, value in places.items())
            where = "disk" if places["plan.weights"] == "disk" else "host"
            way = f"{error.remedy}, or leave part of it on the {where}: --layout {layout} {options}"
            return UserError(error.message, remedy=way, code=error.code)
    return error


def advisor_of_job(job: dict[str, Any]) -> PartitionPlanner:
    """The advisor of a recorded simulation, from the "job" of its run.json."""
    overrides = tuple((key, text) for key, text in job["overrides"])
    recorded = SimJob(**{**job, "overrides": overrides})
    return resolve(recorded, load(recorded.trace, max_rows=1).expert_skew).planner
