"""Layouts: how the GPUs form engines and ranks, and what that puts on each GPU; no speed here.

Spec strings are parts joined by "+" or ",": `tpN` tensor parallelism inside a rank, `dpaN` N
lockstep ranks with data-parallel attention, `epN` experts spread over N GPUs of an engine, `eplbN`
these placed by their loads with N copies beside, `ppN` layers split over N stages, `dpN` N
independent engines. "dpa16+ep16" on 128 GPUs means eight engines of 16 ranks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import ceil

from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.model import DTYPE_BYTES, ModelSpec
from batchgen.pipeline import stage_models

MAX_INSTANCE_GPUS = 64  # gains of larger instances plateau (BatchGen paper, multi-instance scaling)
ROOMY_FRACTION = 0.65  # weights per GPU memory that leave about a quarter of it to the KV cache
ROOMY_EP_FRACTION = 0.60  # the same for expert-parallel engines, whose buffers are larger
CROWDED_FRACTION = 0.75  # more than this and replicated attention weights cost too much KV room
FULL_FRACTION = 0.87  # 0.9 of the memory less about 2 GB of workspace: beyond it nothing runs

_PART = re.compile(r"(tp|dpa|eplb|ep|pp|dp)([0-9]{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`num_engines` engines of `attention_dp` ranks of `tp` GPUs; experts over `ep` GPUs.

    `ep` divides `gpus_per_stage`; with `ep` smaller than that the remaining factor splits each
    expert (expert tensor parallelism). Dense models have `ep` 1. `spare_experts`: experts of a
    layer are placed by their loads, with so many copies beside; None: by their numbers, no copies.
    With `pp` the layers of an engine
    are split over so many stages of `tp` GPUs, and as many batches are in flight.
    """

    tp: int = 1
    attention_dp: int = 1
    ep: int = 1
    pp: int = 1
    num_engines: int = 1
    spare_experts: int | None = None

    def __post_init__(self) -> None:
        if self.spare_experts is not None and (self.spare_experts < 0 or self.ep == 1):
            raise ValueError("layout.spare_experts is from 0 on, and of experts that are spread")
        for field in ("tp", "attention_dp", "ep", "pp", "num_engines"):
            if getattr(self, field) < 1:
                raise ValueError(f"layout.{field} must be at least 1, got {getattr(self, field)}")
        if self.gpus_per_stage % self.ep:
            raise ValueError(
                f"layout.ep must divide the {self.gpus_per_stage} GPUs of an engine, got {self.ep}"
            )
        if self.pp > 1 and self.attention_dp > 1:
            raise ValueError("layout.pp and layout.attention_dp do not go together")

    @property
    def gpus_per_stage(self) -> int:
        return self.tp * self.attention_dp

    @property
    def gpus_per_engine(self) -> int:
        return self.gpus_per_stage * self.pp

    @property
    def stage(self) -> Layout:
        """One stage of one engine as an engine of its own."""
        return replace(self, pp=1, num_engines=1)

    @property
    def ranks_per_engine(self) -> int:
        return self.attention_dp

    @property
    def gpus_per_rank(self) -> int:
        return self.tp

    @property
    def num_gpus(self) -> int:
        return self.gpus_per_engine * self.num_engines

    def expert_slots(self, num_experts: int) -> int:
        """Experts of a layer that the fullest of the `ep` GPUs holds, copies included."""
        return -(-(num_experts + (self.spare_experts or 0)) // self.ep)

    @property
    def expert_tp(self) -> int:
        """Slices of one expert."""
        return self.gpus_per_stage // self.ep

    def __str__(self) -> str:
        parts = []
        if self.tp > 1 or self.attention_dp * self.num_engines * self.ep * self.pp == 1:
            parts.append(f"tp{self.tp}")
        if self.attention_dp > 1:
            parts.append(f"dpa{self.attention_dp}")
        if self.ep > 1:
            parts.append(f"ep{self.ep}")
        if self.spare_experts is not None:
            parts.append(f"eplb{self.spare_experts}")
        if self.pp > 1:
            parts.append(f"pp{self.pp}")
        engine = "+".join(parts)
        if self.num_engines > 1:
            return f"{engine},dp{self.num_engines}" if engine else f"dp{self.num_engines}"
        return engine


def parse_layout(spec: str, num_gpus: int) -> Layout:
    """The layout of a spec string on `num_gpus` GPUs; without `dp` it fills all of them.

    Raises UserError for an unknown part and when the parts do not make up `num_gpus`.
    """
    grammar = "write for instance tp8, dp128, tp2,dp4, tp8+pp2 or dpa16+ep16"
    sizes: dict[str, int] = {}
    for part in re.split(r"[+,]", spec.strip().lower().replace(" ", "")):
        match = _PART.fullmatch(part)
        if match is None:
            raise UserError(f"layout '{spec}': unknown part '{part}'", remedy=grammar)
        kind, size = match.group(1), int(match.group(2))
        if kind in sizes:
            raise UserError(f"layout '{spec}': '{kind}' is given twice", remedy=grammar)
        if size < 1 and kind != "eplb":
            raise UserError(f"layout '{spec}': '{part}' must be at least 1", remedy=grammar)
        sizes[kind] = size
    if num_gpus < 1:
        raise UserError(f"the number of GPUs must be at least 1, got {num_gpus}")
    tp, attention_dp = sizes.get("tp", 1), sizes.get("dpa", 1)
    ep, pp = sizes.get("ep", 1), sizes.get("pp", 1)
    if pp > 1 and attention_dp > 1:
        raise UserError(
            f"layout '{spec}': stages of data-parallel attention are not simulated",
            remedy="use pp with tp, or dpa without pp",
        )
    per_stage, per_engine = tp * attention_dp, tp * attention_dp * pp
    if per_stage % ep:
        where = "a stage" if pp > 1 else "an engine"
        raise UserError(
            f"layout '{spec}': ep{ep} does not divide the {per_stage} GPUs of {where}",
            remedy=f"use ep{per_stage}, or tp and dpa that multiply to a multiple of {ep}",
        )
    spare = sizes.get("eplb")
    if spare is not None and ep == 1:
        raise UserError(
            f"layout '{spec}': eplb places experts that are spread",
            remedy="add ep, or leave eplb out",
        )
    engines = sizes.get("dp", num_gpus // per_engine)
    if engines * per_engine != num_gpus:
        fitting = max(num_gpus // per_engine, 1) * per_engine
        raise UserError(
            f"layout '{spec}' takes {engines * per_engine or per_engine} GPUs, not {num_gpus}",
            remedy=f"engines have {per_engine} GPUs: use --gpus {fitting}, or another layout",
        )
    return Layout(
        tp=tp, attention_dp=attention_dp, ep=ep, pp=pp, num_engines=engines, spare_experts=spare
    )


def check_layout(model: ModelSpec, layout: Layout) -> None:
    """Raise UserError when `model` cannot be split as `layout` says."""
    if model.num_heads % layout.tp:
        raise UserError(
            f"layout {layout}: tp{layout.tp} does not divide the {model.num_heads} attention "
            f"heads of {model.name}",
            remedy="use a tp that divides them",
        )
    if layout.ep > 1 and not model.is_moe:
        raise UserError(
            f"layout {layout}: {model.name} has no experts to spread", remedy="leave ep out"
        )
    if layout.ep > model.num_experts > 0:
        raise UserError(
            f"layout {layout}: ep{layout.ep} exceeds the {model.num_experts} experts of "
            f"{model.name}",
            remedy=f"use at most ep{model.num_experts}",
        )
    spare = layout.spare_experts
    if spare is not None and (model.num_experts + spare) % layout.ep:
        even = -model.num_experts % layout.ep
        raise UserError(
            f"layout {layout}: {model.num_experts} experts and {spare} copies do not fill "
            f"{layout.ep} GPUs evenly",
            remedy=f"use eplb{even}, or {layout.ep} or a multiple of it more",
        )
    if spare is not None and spare > model.num_experts * (layout.ep - 1):
        raise UserError(
            f"layout {layout}: {spare} copies are more than one of each expert on each GPU",
            remedy=f"use at most eplb{model.num_experts * (layout.ep - 1)}",
        )
    if layout.pp > model.num_layers:
        raise UserError(
            f"layout {layout}: {layout.pp} stages exceed the {model.num_layers} layers of "
            f"{model.name}",
            remedy=f"use at most pp{model.num_layers}",
        )


def weight_bytes_per_gpu(model: ModelSpec, layout: Layout) -> dict[str, int]:
    """Weight bytes that one GPU holds, per kind of module (the fullest GPU)."""
    if layout.pp > 1:
        return max(stage_weight_bytes(model, layout), key=lambda held: sum(held.values()))
    whole = model.weight_bytes_by_module()
    tp = layout.tp
    linear = DTYPE_BYTES[model.weight_dtype]
    attention = model.num_layers * attention_parameters_per_gpu(model, tp) * linear
    bytes_per_gpu = {
        "attention": ceil(attention),
        "dense_ffn": ceil(whole["dense_ffn"] / tp),
        "shared_experts": ceil(whole["shared_experts"] / tp),
        "router": whole["router"],
        "embedding": ceil(whole["embedding"] / tp),
        "lm_head": ceil(whole["lm_head"] / tp),
        "final_norm": whole["final_norm"],
        "experts": 0,
    }
    if model.is_moe:
        share = layout.expert_slots(model.num_experts) / model.num_experts / layout.expert_tp
        bytes_per_gpu["experts"] = ceil(whole["experts"] * share)
    return bytes_per_gpu


def stage_weight_bytes(model: ModelSpec, layout: Layout) -> list[dict[str, int]]:
    """Weight bytes that one GPU of every stage holds: the first has the embedding, the last the
    head (which is the embedding when they are tied)."""
    if layout.pp == 1:
        return [weight_bytes_per_gpu(model, layout)]
    held = [weight_bytes_per_gpu(one, layout.stage) for one in stage_models(model, layout.pp)]
    for one in held[:-1]:
        one["lm_head"] = one["final_norm"] = 0
    for one in held[1:] if not model.tied else held[1:-1]:
        one["embedding"] = 0
    return held


def attention_parameters_per_gpu(model: ModelSpec, tp: int) -> float:
    """Parameters of one attention layer on one of `tp` GPUs (KV heads are copied if too few)."""
    whole, fixed = model.attention_matmul_parameters, model.attention_replicated_parameters
    rest = model.attention_parameters - whole
    if model.attention == "mla":
        return fixed + (whole - fixed) / tp + rest
    kv = 2 * model.hidden * model.num_kv_heads * model.head_dim
    return (whole - kv) / tp + kv / min(tp, model.num_kv_heads) + rest


def kv_split(model: ModelSpec, tp: int) -> int:
    """Into how many parts the KV of one row falls: by heads (MHA, GQA), never for MLA."""
    return 1 if model.attention == "mla" else min(tp, model.num_kv_heads)


def default_layout(
    model: ModelSpec, gpu: GpuSpec, num_gpus: int, gpus_per_node: int | None = None
) -> tuple[Layout, str]:
    """The layout to use when none is given, and one sentence why.

    One GPU per engine where the weights leave room; else the smallest tensor parallelism inside a
    node that does; MoE models that would need a whole node run data-parallel attention with expert
    parallelism on the smallest power of two of GPUs where the weights leave room, up to 64 GPUs.
    Raises UserError when the weights do not fit on `num_gpus` GPUs in any of these ways.
    """
    full_node = gpus_per_node or gpu.gpus_per_node
    node = min(full_node, num_gpus)

    def share(layout: Layout) -> float:
        return sum(weight_bytes_per_gpu(model, layout).values()) / gpu.hbm_bytes

    def reason(layout: Layout, text: str) -> tuple[Layout, str]:
        percent = f"{100 * share(layout):.0f} % of {gpu.name} memory"
        return layout, f"{layout}: {text} (weights take {percent} per GPU)"

    tensor = [
        Layout(tp=tp, num_engines=num_gpus // tp)
        for tp in _powers(node)
        if num_gpus % tp == 0 and model.num_heads % tp == 0
    ]
    for layout in tensor:
        whole_node_moe = model.is_moe and 1 < layout.tp >= full_node
        if share(layout) <= ROOMY_FRACTION and not whole_node_moe:
            if layout.tp == 1:
                return reason(layout, f"{model.name} fits one GPU with room for KV")
            return reason(layout, f"the smallest tp that leaves {model.name} room for KV")
    expert = [
        Layout(attention_dp=size, ep=size, num_engines=num_gpus // size)
        for size in _powers(min(num_gpus, MAX_INSTANCE_GPUS))
        if size >= node and num_gpus % size == 0 and 1 < size <= model.num_experts
    ]
    for layout in expert:
        if share(layout) <= ROOMY_EP_FRACTION:
            return reason(
                layout,
                "data-parallel attention and expert parallelism on the fewest GPUs that leave room",
            )
    # Nothing is roomy: whole experts per GPU if they fit at all, else the least crowded layout.
    for layout in expert:
        if share(layout) <= CROWDED_FRACTION:
            return reason(layout, f"{model.name} fits {num_gpus} GPUs with little room for KV")
    crowded = sorted([*tensor, *_tensor_and_expert(model, tensor)], key=share)
    if crowded and share(crowded[0]) <= FULL_FRACTION:
        return reason(crowded[0], f"{model.name} leaves the most room this way")
    need = ceil(model.weight_bytes / (ROOMY_EP_FRACTION * gpu.hbm_bytes))
    raise UserError(
        f"{model.name} ({model.weight_bytes / 1e9:.0f} GB of weights) does not fit on "
        f"{num_gpus} x {gpu.name} ({gpu.hbm_bytes / 1e9:.1f} GB each)",
        remedy=f"use --gpus {1 << (need - 1).bit_length()} or more, or a larger GPU",
        code="does_not_fit",
    )


def _tensor_and_expert(model: ModelSpec, tensor: list[Layout]) -> list[Layout]:
    """The tensor-parallel layouts with whole experts per GPU instead of slices."""
    return [
        Layout(tp=layout.tp, ep=layout.tp, num_engines=layout.num_engines)
        for layout in tensor
        if 1 < layout.tp <= model.num_experts
    ]


def _powers(limit: int) -> list[int]:
    return [1 << bit for bit in range(limit.bit_length()) if 1 << bit <= limit]
