"""gpt-oss: attention with sinks, every other layer with a window; experts with biases and a clamped
SwiGLU, kept in floats or, as published, in MXFP4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from batchgen.exec.config import (
    ClampedSwiglu,
    LayerConfig,
    ModelConfig,
    MoeConfig,
    RoutingConfig,
)
from batchgen.exec.dequantise import MXFP4_BLOCK, from_mxfp4
from batchgen.exec.families import building, parsing
from batchgen.exec.families.base import Family
from batchgen.exec.layers import Layer
from batchgen.exec.mlp import SparseMlp
from batchgen.exec.routing import Router
from batchgen.exec.weights import Reader
from batchgen.fields import Fields

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}  # what the configuration class means when the file says nothing


def read(fields: Fields) -> ModelConfig:
    quantised = parsing.refuse_quantised(fields, ("mxfp4",))
    bias = fields.flag("attention_bias", True)
    heads = parsing.grouped_heads(fields, 64, qkv_bias=bias, out_bias=bias, sinks=True)
    count = parsing.num_layers(fields)
    window = parsing.window_tokens(fields) if "sliding_window" in fields.values else 128
    windows = parsing.layer_types(fields, window, [layer % 2 == 0 for layer in range(count)])
    experts = parsing.num_experts(fields, "num_local_experts", "num_experts")
    width, hidden = fields.integer("intermediate_size"), fields.integer("hidden_size")
    for name, size in (("intermediate_size", width), ("hidden_size", hidden)):
        if quantised and size % MXFP4_BLOCK:
            raise fields.error(name, f"must be a multiple of {MXFP4_BLOCK} in mxfp4, got {size}")
    mlp = MoeConfig(
        num_experts=experts,
        experts_per_token=parsing.experts_per_token(fields, experts),
        width=width,
        routing=RoutingConfig(score="chosen-softmax", bias=True),
        bias=True,
        clamp=ClampedSwiglu(
            alpha=fields.number("swiglu_alpha", 1.702), limit=fields.number("swiglu_limit", 7.0)
        ),
    )
    layers = [LayerConfig(attention=replace(heads, window=n), mlp=mlp) for n in windows]
    if not (fields.values.get("rope_scaling") or fields.values.get("rope_parameters")):
        fields = Fields(fields.path, fields.values | {"rope_scaling": YARN})
    rope = parsing.rope(fields, heads.head_dim, 150000.0)
    return parsing.model_config(fields, "gpt-oss", layers, rope, eps=1e-5)


def layer(model: Reader, config: ModelConfig, number: int) -> Layer:
    read = model.under(f"model.layers.{number}.")
    one = config.layers[number]
    assert isinstance(one.mlp, MoeConfig)
    return Layer(
        norms=building.read_norms(read, config),
        attention=building.attention(read.under("self_attn."), config, one.attention),
        mlp=_experts(read.under("mlp."), config, one.mlp),
    )


def _experts(read: Reader, config: ModelConfig, one: MoeConfig) -> SparseMlp:
    count, hidden, width = one.num_experts, config.hidden_size, one.width
    router = Router(
        config=one.routing,
        experts_per_token=one.experts_per_token,
        arithmetic=read.arithmetic,
        weight=read("router.weight", count, hidden),
        bias=read("router.bias", count),
    )
    part = read.under("experts.")
    # Gate and up are interleaved in the file; here gate lies above up.
    gate_up = _halves(_matrix(part, "gate_up_proj", count, 2 * width, hidden))
    return SparseMlp(
        arithmetic=read.arithmetic,
        router=router,
        gate_up=gate_up,
        gate_up_bias=_halves(part("gate_up_proj_bias", count, 2 * width)),
        down=_matrix(part, "down_proj", count, hidden, width),
        down_bias=part("down_proj_bias", count, hidden),
        clamp=one.clamp,
    )


def _matrix(part: Reader, name: str, experts: int, outputs: int, inputs: int) -> torch.Tensor:
    """[E, outputs, inputs]: stored so in blocks of MXFP4, or as floats, the last two swapped."""
    if part.has(f"{name}_blocks"):
        blocks = inputs // MXFP4_BLOCK
        packed = part.stored(
            f"{name}_blocks", experts, outputs, blocks, MXFP4_BLOCK // 2, kind=torch.uint8
        )
        scales = part.stored(f"{name}_scales", experts, outputs, blocks, kind=torch.uint8)
        whole = part.empty(experts, outputs, inputs)
        for expert in range(experts):  # in float32 all of them together may not fit
            whole[expert] = from_mxfp4(packed[expert], scales[expert])
        return whole
    return part(name, experts, inputs, outputs).transpose(1, 2).contiguous()


def _halves(rows: torch.Tensor) -> torch.Tensor:
    """Rows 0, 2, 4, ... of each expert above rows 1, 3, 5, ..."""
    halves, count = rows.clone(), rows.shape[1] // 2
    halves[:, :count], halves[:, count:] = rows[:, ::2], rows[:, 1::2]
    return halves


def sample(size: str) -> dict[str, Any]:
    tiny = size == "tiny"
    return {
        "attention_bias": True,
        "intermediate_size": 64 if tiny else 192,
        "num_local_experts": 8 if tiny else 16,
        "num_experts_per_tok": 2 if tiny else 4,
        "sliding_window": 24 if tiny else 128,
        "swiglu_limit": 7.0,
        "rope_theta": 150000.0,
        "rope_scaling": YARN | {"original_max_position_embeddings": 128},
    }


FAMILY = Family(
    name="gpt-oss",
    architecture="GptOssForCausalLM",
    model_type="gpt_oss",
    read=read,
    layer=layer,
    sample=sample,
)
