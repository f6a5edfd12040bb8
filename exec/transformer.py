"""A decoder-only transformer over a ragged paged batch. Knows no rows, no sampling, no policy.

One class for Llama, Qwen3 and Qwen3-MoE: the families differ in data (q/k norms, biases, which
MLP a layer has), not in control flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.attention import paged_attention
from batchgen.exec.batch import PassBatch
from batchgen.exec.compiled import is_compiled
from batchgen.exec.config import ModelConfig
from batchgen.exec.exact import check_products
from batchgen.exec.layers import (
    DenseMlp,
    Mlp,
    SparseMlp,
    apply_rope,
    linear,
    rms_norm,
    rope_frequencies,
    rope_table,
)
from batchgen.exec.weights import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Weights of one layer. qkv [(N + 2 V) D, H] stacks the three projections."""

    input_norm: torch.Tensor
    post_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    mlp: Mlp


class Transformer:
    """A model in memory; `forward` runs one pass and returns logits of the chosen tokens.

    `exact`: a token's logits are bitwise the same in every batch (float32 only).
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        *,
        exact: bool = False,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self.exact = exact
        read = Reader(checkpoint, dtype, torch.device(device))
        self.embedding = read("model.embed_tokens.weight")
        self.final_norm = read("model.norm.weight")
        self.head = self.embedding if config.tie_word_embeddings else read("lm_head.weight")
        self.layers = [
            _load_layer(config, read, layer, exact) for layer in range(config.num_layers)
        ]
        frequencies = rope_frequencies(config.rope, config.head_dim)
        cos, sin = rope_table(frequencies, config.max_context)
        self.cos, self.sin = cos.to(read.device), sin.to(read.device)
        if exact:
            check_products(self._matrices())

    def _matrices(self) -> Iterator[torch.Tensor]:
        yield self.head
        for layer in self.layers:
            yield from (layer.qkv, layer.out)
            if isinstance(layer.mlp, SparseMlp):
                yield from (layer.mlp.router, layer.mlp.gate_up[0], layer.mlp.down[0])
            else:
                yield from (layer.mlp.gate_up, layer.mlp.down)

    @torch.inference_mode()
    def forward(self, arena: KvArena, batch: PassBatch, wanted: torch.Tensor) -> torch.Tensor:
        """Run T tokens, write their KV into `arena`, return float32 logits [len(wanted), vocab].

        `wanted` holds flat token numbers; the head is applied to those alone.
        """
        x_TH = self.embedding.index_select(0, batch.token_ids)
        cos = self.cos.index_select(0, batch.positions)
        sin = self.sin.index_select(0, batch.positions)
        eps = self.config.rms_eps
        for number, layer in enumerate(self.layers):
            normed = rms_norm(x_TH, layer.input_norm, eps)
            x_TH = x_TH + self._attention(number, layer, normed, cos, sin, arena, batch)
            x_TH = x_TH + layer.mlp(rms_norm(x_TH, layer.post_norm, eps))
        chosen = rms_norm(x_TH.index_select(0, wanted), self.final_norm, eps)
        return linear(chosen, self.head, exact=self.exact).float()

    def _attention(
        self,
        number: int,
        layer: Layer,
        x_TH: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        arena: KvArena,
        batch: PassBatch,
    ) -> torch.Tensor:
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = linear(x_TH, layer.qkv, layer.qkv_bias, exact=self.exact)
        qkv = qkv.view(len(x_TH), -1, config.head_dim)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(q, layer.q_norm, config.rms_eps)
            k = rms_norm(k, layer.k_norm, config.rms_eps)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        arena.write(number, batch.pages, batch.offsets, k, v)
        attended = paged_attention(arena, number, q, batch)
        return linear(attended.flatten(1), layer.out, layer.out_bias, exact=self.exact)


class Reader:
    """Tensors of a checkpoint in one dtype on one device; `under` names a part of the model."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, prefix: str = ""
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.prefix = prefix

    def __call__(self, name: str) -> torch.Tensor:
        return self.checkpoint.tensor(self.prefix + name, self.dtype).to(self.device)

    def under(self, prefix: str) -> Reader:
        return Reader(self.checkpoint, self.dtype, self.device, self.prefix + prefix)


def _load_layer(config: ModelConfig, model: Reader, number: int, exact: bool) -> Layer:
    read = model.under(f"model.layers.{number}.")
    biased = config.attention_bias
    return Layer(
        input_norm=read("input_layernorm.weight"),
        post_norm=read("post_attention_layernorm.weight"),
        qkv=torch.cat([read(f"self_attn.{x}_proj.weight") for x in "qkv"]),
        qkv_bias=torch.cat([read(f"self_attn.{x}_proj.bias") for x in "qkv"]) if biased else None,
        out=read("self_attn.o_proj.weight"),
        out_bias=read("self_attn.o_proj.bias") if biased else None,
        q_norm=read("self_attn.q_norm.weight") if config.qk_norm else None,
        k_norm=read("self_attn.k_norm.weight") if config.qk_norm else None,
        mlp=_load_mlp(config, read.under("mlp."), number, exact),
    )


def _load_mlp(config: ModelConfig, read: Reader, number: int, exact: bool) -> Mlp:
    moe = config.moe
    if moe is None or number not in moe.sparse_layers:
        return DenseMlp(
            gate_up=torch.cat([read("gate_proj.weight"), read("up_proj.weight")]),
            down=read("down_proj.weight"),
            gate_up_bias=torch.cat([read("gate_proj.bias"), read("up_proj.bias")])
            if config.mlp_bias
            else None,
            down_bias=read("down_proj.bias") if config.mlp_bias else None,
            exact=exact,
        )
    if read.checkpoint.fused:
        gate_up, down = read("experts.gate_up_proj"), read("experts.down_proj")
    else:
        inner, hidden = moe.intermediate_size, config.hidden_size
        place = {"dtype": read.dtype, "device": read.device}
        gate_up = torch.empty(moe.num_experts, 2 * inner, hidden, **place)
        down = torch.empty(moe.num_experts, hidden, inner, **place)
        for expert in range(moe.num_experts):  # filled in place: no second copy of all experts
            gate_up[expert, :inner] = read(f"experts.{expert}.gate_proj.weight")
            gate_up[expert, inner:] = read(f"experts.{expert}.up_proj.weight")
            down[expert] = read(f"experts.{expert}.down_proj.weight")
    return SparseMlp(
        router=read("gate.weight"),
        gate_up=gate_up,
        down=down,
        experts_per_token=moe.experts_per_token,
        norm_topk_prob=moe.norm_topk_prob,
        exact=exact,
        compiled=read.device.type == "cpu" and is_compiled(read.dtype),
    )
