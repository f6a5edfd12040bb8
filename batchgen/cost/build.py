"""Makes the cost model of a run: a profile, the roofline, or measured kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, CostModel
from batchgen.cost.block import BlockSchedule
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.residency import HIDDEN_BYTES, Residency, check_places
from batchgen.cost.roofline import RooflineCost
from batchgen.cost.terms import Terms
from batchgen.cost.tiers import tier_rates
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout, check_layout
from batchgen.model import ModelSpec
from batchgen.pipeline import stage_models

# Exponents of the popularity of experts with which they were measured.
MEASURED_SKEWS = (0.0, 1.01, 1.2)


def build_cost(
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    *,
    plan_b_attn: int = 0,
    plan_b_moe: int = 0,
    expert_skew: float = 0.0,
    profile: str | Path | None = None,
    gpus_per_node: int | None = None,
    efficiency: Efficiency | None = None,
    costs: str = "roofline",
    residency: Residency | None = None,
    streamed_bytes: int = 0,
    disk_bytes: int = 0,
) -> CostModel:
    """The cost of one engine of `layout`; identical engines should share the object.

    `residency`: what lives on the host or its disks, with `streamed_bytes` of weights per GPU and
    pass, `disk_bytes` of them from the disks.
    `costs`: "roofline", or "measured" for sums of measured kernels. `gpus_per_node` None takes that
    of the GPU. A `profile` (path to the JSON of `batchgen profile`)
    replaces the roofline and needs a layout of one-GPU engines. Raises UserError otherwise, for a
    layout the model cannot take, and for negative options. A layout of several stages is the
    cost of each stage's layers, and of what lies between them (`batchgen.cost.pipeline`).
    """
    check_layout(model, layout)
    residency = residency or Residency()
    check_places(layout, residency)
    for name, value in (("b_attn", plan_b_attn), ("b_moe", plan_b_moe), ("skew", expert_skew)):
        if value < 0:
            raise UserError(f"plan option {name} must not be negative, got {value}")
    efficiency, node = efficiency or Efficiency(), gpus_per_node or gpu.gpus_per_node
    if layout.pp > 1 and profile is not None:
        raise UserError(
            f"layout {layout}: profiles hold no single stages of a pipeline",
            remedy="leave --profile out, or pp",
        )
    engine = partial(
        _in_hbm,
        gpu=gpu,
        gpus_per_node=node,
        b_attn=plan_b_attn,
        b_moe=plan_b_moe,
        expert_skew=expert_skew,
        profile=profile,
        costs=costs,
    )
    if layout.pp > 1:
        return _pipeline(engine, model, gpu, layout, node, efficiency)
    inner = engine(model, layout=layout, efficiency=efficiency)
    if efficiency.attention_theta < 1.0:
        from batchgen.cost.overlapped import OverlappedCost

        inner = OverlappedCost(inner, efficiency.attention_theta)
    if residency.streams:
        streamed = streamed_bytes, disk_bytes
        return _streamed(inner, model, gpu, layout, residency, streamed, node, efficiency)
    return inner


def _in_hbm(
    model: ModelSpec,
    *,
    gpu: GpuSpec,
    layout: Layout,
    gpus_per_node: int,
    efficiency: Efficiency,
    b_attn: int,
    b_moe: int,
    expert_skew: float,
    profile: str | Path | None,
    costs: str,
) -> CostModel:
    """An engine without stages that has all it needs on its GPUs."""
    common: dict[str, Any] = {"efficiency": efficiency, "gpus_per_node": gpus_per_node}
    if profile is not None and Path(profile).is_dir():
        from batchgen.cost.engine_profile import EngineProfileCost
        from batchgen.cost.engine_tables import read_engine_tables

        _refuse_sub_batches(b_attn, b_moe, "operator profiles", "--profile")
        tables = read_engine_tables(profile, model, gpu, layout.tp)
        return EngineProfileCost(model, gpu, layout, tables, expert_skew=expert_skew, **common)
    if layout.spare_experts is not None and (profile is not None or costs == "measured"):
        raise UserError(
            f"layout {layout}: times that were measured are of experts placed by their numbers",
            remedy="leave eplb out, or --profile and --costs measured",
        )
    if profile is not None:
        from batchgen.cost.profile import ProfiledCost, load_profile

        return ProfiledCost(model, load_profile(profile), layout)
    if costs == "measured":
        from batchgen.cost.measured import MeasuredCost

        _refuse_sub_batches(b_attn, b_moe, "measured costs", "--costs measured")
        return MeasuredCost(model, gpu, layout, skew=_measured_skew(expert_skew), **common)
    return RooflineCost(
        model, gpu, layout, b_attn=b_attn, b_moe=b_moe, expert_skew=expert_skew, **common
    )


def _refuse_sub_batches(b_attn: int, b_moe: int, what: str, flag: str) -> None:
    if b_attn or b_moe:
        raise UserError(
            f"plan.b_attn and plan.b_moe: {what} know no sub-batches",
            remedy=f"leave out {flag}, or the options",
        )


def _measured_skew(exponent: float) -> float:
    """0, 1, 2 for the exponents with which experts were measured, linear in between."""
    if exponent > MEASURED_SKEWS[-1]:
        raise UserError(
            f"an expert skew of {exponent:g}: experts were measured up to {MEASURED_SKEWS[-1]}",
            remedy="leave out --costs measured",
        )
    return float(np.interp(exponent, MEASURED_SKEWS, range(len(MEASURED_SKEWS))))


def _pipeline(
    engine: Callable[..., CostModel],
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    gpus_per_node: int,
    efficiency: Efficiency,
) -> CostModel:
    from batchgen.cost.pipeline import PipelineCost, hops_of

    known: dict[ModelSpec, CostModel] = {}
    stages = []
    for one in stage_models(model, layout.pp):
        if one not in known:
            # Launches of a pass with prompts are of its layers; the rest of its host work is paid
            # by every stage.
            launches_s = efficiency.prefill_step_s * one.num_layers / model.num_layers
            part = replace(efficiency, prefill_step_s=launches_s)
            known[one] = engine(one, layout=layout.stage, efficiency=part)
        stages.append(known[one])
    terms = Terms(
        model=model,
        gpu=gpu,
        layout=layout.stage,
        efficiency=efficiency,
        gpus_per_node=gpus_per_node,
    )
    return PipelineCost(model, layout, stages, hops_of(terms, layout.pp))


def _streamed(
    inner: CostModel,
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    residency: Residency,
    streamed: tuple[int, int],
    gpus_per_node: int,
    efficiency: Efficiency,
) -> CostModel:
    from batchgen.cost.profile import ProfiledCost
    from batchgen.cost.streamed import StreamedCost

    if efficiency.stream_theta and efficiency.block_schedule != "free":
        raise UserError(
            f"cost.stream_theta={efficiency.stream_theta:g}: "
            f"cost.block_schedule={efficiency.block_schedule} has an overlap of its own",
            remedy="leave cost.stream_theta out, or give cost.block_schedule=free",
        )
    if efficiency.block_schedule == "as-read" and residency.gpu_batches > 1:
        raise UserError(
            f"plan.gpu_batches={residency.gpu_batches}: cost.block_schedule=as-read has no block, "
            "each kernel reads its weights anew",
            remedy="leave plan.gpu_batches out",
        )
    ranks_per_node = max(1, gpus_per_node // layout.tp)
    rates = tier_rates(gpu, efficiency, gpus_per_node)
    if isinstance(inner, ProfiledCost):  # which has measured the link
        rates = replace(rates, host=inner.profile.copies.host_bytes_per_s)
    terms = Terms(
        model=model, gpu=gpu, layout=layout, efficiency=efficiency, gpus_per_node=gpus_per_node
    )
    together = gpus_per_node // layout.gpus_per_engine if efficiency.gathered_layers else 1
    return StreamedCost(
        inner,
        residency,
        weight_bytes=streamed[0],
        disk_bytes=streamed[1],
        rates=rates,
        kv_bytes=model.kv_bytes_per_token / layout.tp,
        cpu_bytes_per_s=efficiency.cpu_attention_bytes_per_s / ranks_per_node,
        model_kv_bytes=model.kv_bytes_per_token,
        hidden_bytes=model.num_layers * model.hidden * HIDDEN_BYTES / layout.tp,
        schedule=BlockSchedule(
            kind=efficiency.block_schedule,
            num_layers=model.num_layers,
            num_batches=residency.gpu_batches,
            theta=efficiency.stream_theta,
        ),
        copies_of_weights=max(1, together),
        gather_bytes_per_s=PS_PER_S / terms.peer_ps_per_byte(internode=False),
    )
