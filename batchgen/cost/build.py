"""Makes the cost model of a run: a profile, the roofline, or measured kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.cost.api import CostModel
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.residency import Residency, check_places
from batchgen.cost.roofline import RooflineCost
from batchgen.cost.terms import Terms
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
) -> CostModel:
    """The cost of one engine of `layout`; identical engines should share the object.

    `residency`: what lives on the host, with `streamed_bytes` of weights per GPU and pass.
    `costs`: "roofline", or "measured" for sums of measured kernels. `gpus_per_node` None takes that
    of the GPU. A `profile` (path to the JSON of `batchgen profile`)
    replaces the roofline and needs a layout of one-GPU engines. Raises UserError otherwise, for a
    layout the model cannot take, and for negative options. A layout of several stages is the
    cost of each stage's layers, and of what lies between them (`batchgen.cost.pipeline`).
    """
    if layout.pp > 1:
        check_layout(model, layout)
        check_places(layout, residency or Residency())
        if profile is not None:
            raise UserError(
                f"layout {layout}: profiles hold no single stages of a pipeline",
                remedy="leave --profile out, or pp",
            )
        return _pipeline(
            model,
            gpu,
            layout,
            gpus_per_node=gpus_per_node or gpu.gpus_per_node,
            efficiency=efficiency or Efficiency(),
            plan_b_attn=plan_b_attn,
            plan_b_moe=plan_b_moe,
            expert_skew=expert_skew,
            costs=costs,
        )
    if residency is not None and residency.streams:
        inner = build_cost(
            model,
            gpu,
            layout,
            plan_b_attn=plan_b_attn,
            plan_b_moe=plan_b_moe,
            expert_skew=expert_skew,
            profile=profile,
            gpus_per_node=gpus_per_node,
            efficiency=efficiency,
            costs=costs,
        )
        per_node = gpus_per_node or gpu.gpus_per_node
        return _streamed(inner, model, gpu, layout, residency, streamed_bytes, per_node, efficiency)
    check_layout(model, layout)
    for name, value in (("b_attn", plan_b_attn), ("b_moe", plan_b_moe), ("skew", expert_skew)):
        if value < 0:
            raise UserError(f"plan option {name} must not be negative, got {value}")
    if profile is not None and Path(profile).is_dir():
        from batchgen.cost.engine_profile import EngineProfileCost
        from batchgen.cost.engine_tables import read_engine_tables

        if plan_b_attn or plan_b_moe:
            raise UserError(
                "plan.b_attn and plan.b_moe: operator profiles know no sub-batches",
                remedy="leave out --profile, or the options",
            )
        return EngineProfileCost(
            model,
            gpu,
            layout,
            read_engine_tables(profile, model, gpu, layout.tp),
            efficiency=efficiency,
            expert_skew=expert_skew,
            gpus_per_node=gpus_per_node or gpu.gpus_per_node,
        )
    if profile is not None:
        from batchgen.cost.profile import ProfiledCost, load_profile

        return ProfiledCost(model, load_profile(profile), layout)
    if costs == "measured":
        return _measured(
            model, gpu, layout, plan_b_attn, plan_b_moe, expert_skew, gpus_per_node, efficiency
        )
    return RooflineCost(
        model,
        gpu,
        layout,
        efficiency=efficiency,
        b_attn=plan_b_attn,
        b_moe=plan_b_moe,
        expert_skew=expert_skew,
        gpus_per_node=gpus_per_node or gpu.gpus_per_node,
    )


def _pipeline(
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    *,
    gpus_per_node: int,
    efficiency: Efficiency,
    **options: Any,
) -> CostModel:
    from batchgen.cost.pipeline import PipelineCost, hops_of

    known: dict[ModelSpec, CostModel] = {}
    stages = []
    for one in stage_models(model, layout.pp):
        if one not in known:
            # Launches of a pass with prompts are of its layers; the rest of its host work is paid
            # by every stage.
            launches_s = efficiency.prefill_step_s * one.num_layers / model.num_layers
            known[one] = build_cost(
                one,
                gpu,
                layout.stage,
                gpus_per_node=gpus_per_node,
                efficiency=replace(efficiency, prefill_step_s=launches_s),
                **options,
            )
        stages.append(known[one])
    terms = Terms(
        model=model,
        gpu=gpu,
        layout=layout.stage,
        efficiency=efficiency,
        gpus_per_node=gpus_per_node,
    )
    return PipelineCost(model, layout, stages, hops_of(terms, layout.pp))


def _measured(
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    b_attn: int,
    b_moe: int,
    expert_skew: float,
    gpus_per_node: int | None,
    efficiency: Efficiency | None,
) -> CostModel:
    from batchgen.cost.measured import MeasuredCost

    if b_attn or b_moe:
        raise UserError(
            "plan.b_attn and plan.b_moe: measured costs know no sub-batches",
            remedy="leave out --costs measured, or the options",
        )
    if expert_skew > MEASURED_SKEWS[-1]:
        raise UserError(
            f"an expert skew of {expert_skew:g}: experts were measured up to {MEASURED_SKEWS[-1]}",
            remedy="leave out --costs measured",
        )
    skew = float(np.interp(expert_skew, MEASURED_SKEWS, range(len(MEASURED_SKEWS))))
    return MeasuredCost(
        model,
        gpu,
        layout,
        efficiency=efficiency,
        skew=skew,
        gpus_per_node=gpus_per_node or gpu.gpus_per_node,
    )


def _streamed(
    inner: CostModel,
    model: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    residency: Residency,
    streamed_bytes: int,
    gpus_per_node: int,
    efficiency: Efficiency | None,
) -> CostModel:
    from batchgen.cost.streamed import StreamedCost

    eff = efficiency or Efficiency()
    ranks_per_node = max(1, gpus_per_node // layout.tp)
    return StreamedCost(
        inner,
        residency,
        weight_bytes=streamed_bytes,
        link_bytes_per_s=gpu.host_bytes_per_s * eff.host_link,
        kv_bytes=model.kv_bytes_per_token / layout.tp,
        cpu_bytes_per_s=eff.cpu_attention_bytes_per_s / ranks_per_node,
        model_kv_bytes=model.kv_bytes_per_token,
    )
