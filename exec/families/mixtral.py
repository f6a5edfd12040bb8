"""Mixtral: the attention of Mistral, and routed experts under names of their own."""

from __future__ import annotations

from typing import Any

from batchgen.exec.config import ModelConfig, MoeConfig, RoutingConfig
from batchgen.exec.families import building, parsing
from batchgen.exec.families.base import Family
from batchgen.exec.layers import Layer
from batchgen.exec.weights import Reader
from batchgen.fields import Fields


def read(fields: Fields) -> ModelConfig:
    parsing.refuse_quantised(fields)
    heads = parsing.grouped_heads(fields, window=parsing.window_tokens(fields))
    experts = parsing.num_experts(fields, "num_local_experts", "num_experts")
    mlp = MoeConfig(
        num_experts=experts,
        experts_per_token=parsing.experts_per_token(fields, experts),
        width=fields.integer("intermediate_size"),
        routing=RoutingConfig(normalise=True),
    )
    layers = parsing.uniform(heads, [mlp] * parsing.num_layers(fields))
    rope = parsing.rope(fields, heads.head_dim, 1e6)
    return parsing.model_config(fields, "mixtral", layers, rope, eps=1e-5)


PUBLISHED = building.ExpertNames(
    router="block_sparse_moe.gate.weight",
    experts="block_sparse_moe.experts.",
    gate="w1",
    up="w3",
    down="w2",
)


def layer(reader: Reader, config: ModelConfig, number: int) -> Layer:
    return building.layer(reader, config, number, PUBLISHED)


def sample(size: str) -> dict[str, Any]:
    return {
        "intermediate_size": 64 if size == "tiny" else 256,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    }


FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    read=read,
    layer=layer,
    sample=sample,
)
