"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and optional windows."""

from __future__ import annotations

from dataclasses import replace

from batchgen.exec.config import LayerConfig, ModelConfig
from batchgen.exec.families import building, parsing
from batchgen.exec.families.base import Family
from batchgen.fields import MAX_LAYERS, Fields


def read(fields: Fields) -> ModelConfig:
    parsing.refuse_quantised(fields)
    heads = parsing.grouped_heads(fields, qkv_bias=True)
    mlp = parsing.dense_mlp(fields)
    layers = [
        LayerConfig(attention=replace(heads, window=window), mlp=mlp) for window in windows(fields)
    ]
    return parsing.model_config(fields, "qwen2", layers, parsing.rope(fields, heads.head_dim))


def windows(fields: Fields) -> list[int]:
    """The window of each layer: with `use_sliding_window`, layers from `max_window_layers` on have
    one, unless `layer_types` says otherwise."""
    layers = parsing.num_layers(fields)
    use = fields.flag("use_sliding_window", False)
    window = fields.integer("sliding_window", 4096, high=1 << 31) if use else 0
    first = fields.integer("max_window_layers", 28, low=0, high=MAX_LAYERS) if use else layers
    return parsing.layer_types(fields, window, [layer >= first for layer in range(layers)])


FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    read=read,
    layer=building.layer,
    absent=("attention_bias",),  # its files do not say what is always so
)
