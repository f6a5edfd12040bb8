"""Qwen3: Llama with RMS norms over each head's query and key, and optional windows."""

from __future__ import annotations

from dataclasses import replace

from batchgen.exec.config import LayerConfig, ModelConfig
from batchgen.exec.families import building, parsing, qwen2
from batchgen.exec.families.base import Family
from batchgen.fields import Fields


def read(fields: Fields) -> ModelConfig:
    parsing.refuse_quantised(fields)
    bias = fields.flag("attention_bias", False)
    heads = parsing.grouped_heads(fields, 128, qkv_bias=bias, out_bias=bias, qk_norm=True)
    mlp = parsing.dense_mlp(fields)
    layers = [
        LayerConfig(attention=replace(heads, window=window), mlp=mlp)
        for window in qwen2.windows(fields)
    ]
    return parsing.model_config(fields, "qwen3", layers, parsing.rope(fields, heads.head_dim))


FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    read=read,
    layer=building.layer,
)
