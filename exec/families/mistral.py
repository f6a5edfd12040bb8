"""Mistral: Llama without biases, and a window over which every layer slides, or none."""

from __future__ import annotations

from typing import Any

from batchgen.exec.config import ModelConfig
from batchgen.exec.families import building, parsing
from batchgen.exec.families.base import Family
from batchgen.fields import Fields


def read(fields: Fields) -> ModelConfig:
    parsing.refuse_quantised(fields)
    # Absent, it is the 4096 of the configuration class; null means none.
    window = parsing.window_tokens(fields) if "sliding_window" in fields.values else 4096
    heads = parsing.grouped_heads(fields, window=window)
    layers = parsing.uniform(heads, [parsing.dense_mlp(fields)] * parsing.num_layers(fields))
    return parsing.model_config(fields, "mistral", layers, parsing.rope(fields, heads.head_dim))


def sample(size: str) -> dict[str, Any]:
    return {"sliding_window": 24 if size == "tiny" else 256}


FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    read=read,
    layer=building.layer,
    sample=sample,
)
