"""DeepSeek-V2: latent attention, shared and routed experts behind a few dense layers."""

from __future__ import annotations

from typing import Any

from batchgen.exec.config import LayerConfig, ModelConfig, RoutingConfig
from batchgen.exec.families import building, deepseek, parsing
from batchgen.exec.families.base import Family
from batchgen.fields import Fields


def read(fields: Fields) -> ModelConfig:
    method = fields.choice("topk_method", "greedy", ("greedy", "group_limited_greedy"))
    if fields.flag("norm_topk_prob", False):
        raise fields.error("norm_topk_prob", "must be false: published models have no other")
    fields.choice("scoring_func", "softmax", ("softmax",))
    limited = method == "group_limited_greedy"
    routing = RoutingConfig(
        normalise=False,
        scaling=fields.number("routed_scaling_factor", 1.0),
        groups=fields.integer("n_group") if limited else 1,
        groups_kept=fields.integer("topk_group") if limited else 1,
        float32=True,
    )
    attention = deepseek.latent_heads(fields, interleaved=True)
    bias = fields.flag("mlp_bias", False)
    if bias:
        raise fields.error("mlp_bias", "must be false: published models have no other")
    mlps = deepseek.mlps(fields, routing, first_dense=0)
    layers = [LayerConfig(attention=attention, mlp=mlp) for mlp in mlps]
    return parsing.model_config(
        fields,
        "deepseek-v2",
        layers,
        parsing.rope(fields, attention.rope_dim),
        fp8_block=deepseek.fp8_block(fields),
    )


def sample(size: str) -> dict[str, Any]:
    return deepseek.sample(size) | {
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.5,
    }


FAMILY = Family(
    name="deepseek-v2",
    architecture="DeepseekV2ForCausalLM",
    model_type="deepseek_v2",
    read=read,
    layer=building.layer,
    sample=sample,
    absent=("head_dim",),
)
