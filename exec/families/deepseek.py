"""What DeepSeek-V2 and V3 have in common: latent attention, where experts are, FP8 blocks."""

from __future__ import annotations

from typing import Any

from batchgen.exec.config import LatentConfig, MlpConfig, MoeConfig, RoutingConfig
from batchgen.exec.families import parsing
from batchgen.fields import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, Fields


def latent_heads(fields: Fields, *, interleaved: bool) -> LatentConfig:
    """Latent attention; YaRN's `mscale_all_dim` makes the softmax sharper."""
    num_heads = fields.integer("num_attention_heads", high=MAX_HEADS)
    if fields.integer("num_key_value_heads", num_heads, high=MAX_HEADS) != num_heads:
        raise fields.error("num_key_value_heads", f"must be {num_heads}, as there are heads")
    nope, rotary, value = (
        fields.integer(name, high=MAX_HEAD_DIM)
        for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    if rotary % 2:
        raise fields.error("qk_rope_head_dim", f"must be even for rotary embedding, got {rotary}")
    parsing.check_heads(fields, "qk_nope_head_dim", num_heads, nope + rotary)
    parsing.check_heads(fields, "v_head_dim", num_heads, nope + value)
    scale = (nope + rotary) ** -0.5
    rope = parsing.rope(fields, rotary)
    if rope.yarn is not None:
        name = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
        section = fields.section(name)
        if section.values.get("mscale_all_dim"):
            gain = parsing.yarn_gain(rope.yarn.factor, section.number("mscale_all_dim"))
            scale *= gain * gain
    return LatentConfig(
        num_heads=num_heads,
        q_rank=fields.integer("q_lora_rank", 0, low=0),
        kv_rank=fields.integer("kv_lora_rank"),
        nope_dim=nope,
        rope_dim=rotary,
        v_dim=value,
        scale=scale,
        interleaved=interleaved,
        bias=fields.flag("attention_bias", False),
    )


def mlps(fields: Fields, routing: RoutingConfig, first_dense: int) -> list[MlpConfig | MoeConfig]:
    """Dense MLPs in the first layers, then experts in every `moe_layer_freq`-th."""
    dense = parsing.dense_mlp(fields)
    layers = parsing.num_layers(fields)
    experts = parsing.num_experts(fields, "n_routed_experts", "num_experts", "num_local_experts")
    if experts % routing.groups:
        raise fields.error("n_group", f"{routing.groups} does not divide {experts} experts")
    size = experts // routing.groups
    if routing.groups_kept > routing.groups:
        raise fields.error("topk_group", f"{routing.groups_kept} of {routing.groups} groups")
    if size < routing.group_top:
        raise fields.error(
            "n_group", f"leaves {size} experts in a group, {routing.group_top} needed"
        )
    width = fields.integer("moe_intermediate_size")
    per_token = parsing.experts_per_token(fields, experts)
    if per_token > size * routing.groups_kept:
        raise fields.error("topk_group", f"leaves fewer than {per_token} experts to choose")
    moe = MoeConfig(
        num_experts=experts,
        experts_per_token=per_token,
        width=width,
        routing=routing,
        shared_width=width * fields.integer("n_shared_experts", 0, low=0, high=64),
    )
    first = fields.integer("first_k_dense_replace", first_dense, low=0, high=MAX_LAYERS)
    every = fields.integer("moe_layer_freq", 1, high=MAX_LAYERS)
    return [moe if n >= first and n % every == 0 else dense for n in range(layers)]


def fp8_block(fields: Fields) -> tuple[int, int] | None:
    """Rows and columns that share a scale, if the weights are in FP8."""
    if not parsing.refuse_quantised(fields, ("fp8",)):
        return None
    section = fields.section("quantization_config")
    block = section.items("weight_block_size")
    if block is None:
        return 128, 128  # of all published models
    if len(block) != 2 or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 16 for n in block
    ):
        raise section.error("weight_block_size", "must be two sizes, as in [128, 128]")
    return block[0], block[1]


def sample(size: str) -> dict[str, Any]:
    """Fields of a small random checkpoint."""
    tiny = size == "tiny"
    return {
        "num_key_value_heads": 4 if tiny else 8,
        "q_lora_rank": 24 if tiny else 96,
        "kv_lora_rank": 32 if tiny else 64,
        "qk_nope_head_dim": 16 if tiny else 32,
        "qk_rope_head_dim": 8 if tiny else 16,
        "v_head_dim": 16 if tiny else 32,
        "n_routed_experts": 8 if tiny else 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2 if tiny else 4,
        "moe_intermediate_size": 32 if tiny else 192,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
    }
