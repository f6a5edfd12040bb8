"""Qwen3-MoE: the attention of Qwen3, and routed experts in the layers that the config names."""

from __future__ import annotations

from typing import Any

from batchgen.exec.config import ModelConfig, MoeConfig, RoutingConfig
from batchgen.exec.families import building, parsing
from batchgen.exec.families.base import Family
from batchgen.fields import MAX_LAYERS, Fields


def read(fields: Fields) -> ModelConfig:
    parsing.refuse_quantised(fields)
    if fields.flag("use_sliding_window", False):
        raise fields.error("use_sliding_window", "is not supported for qwen3-moe")
    bias = fields.flag("attention_bias", False)
    heads = parsing.grouped_heads(fields, 128, qkv_bias=bias, out_bias=bias, qk_norm=True)
    # transformers 5 may call the expert count num_local_experts.
    experts = parsing.num_experts(fields, "num_experts", "num_local_experts")
    sparse = MoeConfig(
        num_experts=experts,
        experts_per_token=parsing.experts_per_token(fields, experts),
        width=fields.integer("moe_intermediate_size"),
        routing=RoutingConfig(normalise=fields.flag("norm_topk_prob", False)),
    )
    dense = parsing.dense_mlp(fields)
    step = fields.integer("decoder_sparse_step", 1, high=MAX_LAYERS)
    left_out = fields.items("mlp_only_layers") or []
    mlps = [
        sparse if layer not in left_out and (layer + 1) % step == 0 else dense
        for layer in range(parsing.num_layers(fields))
    ]
    layers = parsing.uniform(heads, mlps)
    return parsing.model_config(fields, "qwen3-moe", layers, parsing.rope(fields, heads.head_dim))


def sample(size: str) -> dict[str, Any]:
    tiny = size == "tiny"
    return {
        "moe_intermediate_size": 32 if tiny else 192,
        "num_experts": 8 if tiny else 16,
        "num_experts_per_tok": 2 if tiny else 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


FAMILY = Family(
    name="qwen3-moe",
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    read=read,
    layer=building.layer,
    sample=sample,
)
