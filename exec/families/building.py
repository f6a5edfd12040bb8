"""Layers made of tensors, under the names that most families share.

A function here reads every tensor of its part by name and shape, in the order of the names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchgen.exec.config import AttentionConfig, LatentConfig, MlpConfig, ModelConfig, MoeConfig
from batchgen.exec.latent import LatentAttention
from batchgen.exec.layers import Attention, GroupedAttention, Layer
from batchgen.exec.mlp import DenseMlp, Mlp, SparseMlp
from batchgen.exec.routing import Router
from batchgen.exec.weights import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNames:
    """Names of the tensors of routed experts, one tensor per expert, below the layer's prefix."""

    router: str = "mlp.gate.weight"
    correction: str = "mlp.gate.e_score_correction_bias"
    experts: str = "mlp.experts."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


COMMON = ExpertNames()


def layer(model: Reader, config: ModelConfig, number: int, names: ExpertNames = COMMON) -> Layer:
    """A layer whose tensors have the names of Llama, and its experts `names`."""
    read = model.under(f"model.layers.{number}.")
    one = config.layers[number]
    norms = read_norms(read, config)
    attended = attention(read.under("self_attn."), config, one.attention)
    mlp: Mlp
    if isinstance(one.mlp, MoeConfig):
        mlp = experts(read, config, one.mlp, names)
    else:
        mlp = dense(read.under("mlp."), config, one.mlp)
    return Layer(norms=norms, attention=attended, mlp=mlp)


def read_norms(read: Reader, config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Those before attention and before the MLP."""
    names = ("input_layernorm.weight", "post_attention_layernorm.weight")
    first, second = (read(name, config.hidden_size) for name in names)
    return first, second


def attention(read: Reader, config: ModelConfig, one: AttentionConfig | LatentConfig) -> Attention:
    return (
        latent(read, config, one) if isinstance(one, LatentConfig) else grouped(read, config, one)
    )


def grouped(read: Reader, config: ModelConfig, one: AttentionConfig) -> GroupedAttention:
    hidden = config.hidden_size
    pack = read.arithmetic.pack
    q_size, kv_size = one.num_heads * one.head_dim, one.num_kv_heads * one.head_dim
    sizes = {"q": q_size, "k": kv_size, "v": kv_size}
    return GroupedAttention(
        config=one,
        eps=config.rms_eps,
        arithmetic=read.arithmetic,
        qkv=pack(read.joined({f"{x}_proj.weight": rows for x, rows in sizes.items()}, hidden)),
        qkv_bias=read.joined({f"{x}_proj.bias": rows for x, rows in sizes.items()})
        if one.qkv_bias
        else None,
        out=pack(read("o_proj.weight", hidden, q_size)),
        out_bias=read("o_proj.bias", hidden) if one.out_bias else None,
        q_norm=read("q_norm.weight", one.head_dim) if one.qk_norm else None,
        k_norm=read("k_norm.weight", one.head_dim) if one.qk_norm else None,
        sinks=read("sinks", one.num_heads, dtype=torch.float32) if one.sinks else None,
    )


def latent(read: Reader, config: ModelConfig, one: LatentConfig) -> LatentAttention:
    hidden, pack = config.hidden_size, read.arithmetic.pack
    q_size = one.num_heads * (one.nope_dim + one.rope_dim)
    q_down = q_down_bias = q_norm = None
    if one.q_rank:
        q_down = read("q_a_proj.weight", one.q_rank, hidden)
        q_down_bias = read("q_a_proj.bias", one.q_rank) if one.bias else None
        q_norm = read("q_a_layernorm.weight", one.q_rank)
        q_up = read("q_b_proj.weight", q_size, one.q_rank)
    else:
        q_up = read("q_proj.weight", q_size, hidden)
    kv_down = read("kv_a_proj_with_mqa.weight", one.kv_rank + one.rope_dim, hidden)
    kv_bias = read("kv_a_proj_with_mqa.bias", len(kv_down)) if one.bias else None
    if one.interleaved:
        q_up = _halves_of_pairs(q_up, one.nope_dim + one.rope_dim, one.rope_dim)
        kv_down = _halves_of_pairs(kv_down, len(kv_down), one.rope_dim)
        kv_bias = None if kv_bias is None else _halves_of_pairs(kv_bias, len(kv_bias), one.rope_dim)
    return LatentAttention(
        config=one,
        eps=config.rms_eps,
        arithmetic=read.arithmetic,
        q_down=None if q_down is None else pack(q_down),
        q_down_bias=q_down_bias,
        q_norm=q_norm,
        q_up=pack(q_up),
        kv_down=pack(kv_down),
        kv_down_bias=kv_bias,
        kv_norm=read("kv_a_layernorm.weight", one.kv_rank),
        kv_up=read("kv_b_proj.weight", one.num_heads * (one.nope_dim + one.v_dim), one.kv_rank),
        out=pack(read("o_proj.weight", hidden, one.num_heads * one.v_dim)),
        out_bias=read("o_proj.bias", hidden) if one.bias else None,
    )


def _halves_of_pairs(weight: torch.Tensor, head_rows: int, rotary: int) -> torch.Tensor:
    """Rows of a projection in another order: the last `rotary` of every `head_rows` hold pairs (2i,
    2i + 1), and should hold (i, i + rotary / 2), as `apply_rope` turns them. Queries and keys are
    reordered alike, so that no product of them changes."""
    reordered = weight.clone()
    ours, theirs = (
        x.view(-1, head_rows, *weight.shape[1:])[:, head_rows - rotary :]
        for x in (reordered, weight)
    )
    ours[:, : rotary // 2], ours[:, rotary // 2 :] = theirs[:, ::2], theirs[:, 1::2]
    return reordered


def dense(read: Reader, config: ModelConfig, one: MlpConfig) -> DenseMlp:
    hidden, width, pack = config.hidden_size, one.width, read.arithmetic.pack
    parts = ("gate", "up")
    return DenseMlp(
        arithmetic=read.arithmetic,
        gate_up=pack(
            read.joined({f"{x}_proj.weight": width for x in parts}, hidden), gated=not one.bias
        ),
        gate_up_bias=read.joined({f"{x}_proj.bias": width for x in parts}) if one.bias else None,
        down=pack(read("down_proj.weight", hidden, width)),
        down_bias=read("down_proj.bias", hidden) if one.bias else None,
    )


def experts(read: Reader, config: ModelConfig, one: MoeConfig, names: ExpertNames) -> SparseMlp:
    """Experts in the published layout, or stacked as transformers 5 keeps them in memory."""
    hidden, width, count = config.hidden_size, one.width, one.num_experts
    pack = read.arithmetic.pack
    stacked = read.under("mlp.experts.")
    is_stacked = stacked.has("gate_up_proj")
    names = COMMON if is_stacked else names
    router = Router(
        config=one.routing,
        experts_per_token=one.experts_per_token,
        arithmetic=read.arithmetic,
        weight=pack(
            read(names.router, count, hidden, dtype=torch.float32 if one.routing.float32 else None)
        ),
        correction=read(names.correction, count, dtype=torch.float32)
        if one.routing.correction
        else None,
    )
    if is_stacked:
        gate_up = stacked("gate_up_proj", count, 2 * width, hidden)
        down = stacked("down_proj", count, hidden, width)
    else:
        gate_up, down = read.empty(count, 2 * width, hidden), read.empty(count, hidden, width)
        for expert in range(count):  # filled in place: no second copy of all experts
            part = read.under(f"{names.experts}{expert}.")
            gate_up[expert, :width] = part(f"{names.gate}.weight", width, hidden)
            gate_up[expert, width:] = part(f"{names.up}.weight", width, hidden)
            down[expert] = part(f"{names.down}.weight", hidden, width)
    shared = None
    if one.shared_width:
        shared = dense(read.under("mlp.shared_experts."), config, MlpConfig(width=one.shared_width))
    return SparseMlp(
        arithmetic=read.arithmetic,
        router=router,
        gate_up=pack(gate_up, gated=True),
        down=pack(down),
        shared=shared,
    )
