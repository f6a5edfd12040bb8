"""Llama 2 and 3: grouped-query attention and a dense MLP, both with optional biases."""

from __future__ import annotations

from batchgen.exec.config import ModelConfig
from batchgen.exec.families import building, parsing
from batchgen.exec.families.base import Family
from batchgen.fields import Fields


def read(fields: Fields) -> ModelConfig:
    parsing.refuse_quantised(fields)
    bias = fields.flag("attention_bias", False)
    heads = parsing.grouped_heads(fields, qkv_bias=bias, out_bias=bias)
    mlp = parsing.dense_mlp(fields, bias=fields.flag("mlp_bias", False))
    layers = parsing.uniform(heads, [mlp] * parsing.num_layers(fields))
    return parsing.model_config(fields, "llama", layers, parsing.rope(fields, heads.head_dim))


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    model_type="llama",
    read=read,
    layer=building.layer,
)
