"""A layer of a transformer: norms, grouped-query attention, an MLP. Knows no backend of attention.

Norms are float32 inside whatever the weights are. Shapes: T tokens, H hidden, N query heads, V kv
heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.attention import Heads
from batchgen.exec.batch import Batch
from batchgen.exec.config import AttentionConfig
from batchgen.exec.mlp import Mlp
from batchgen.exec.rotary import apply_rope


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension, statistics in float32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


class Attention(Protocol):
    """From normed hidden states to what is added to them; KV of the pass goes into the arena."""

    def __call__(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch
    ) -> torch.Tensor: ...

    def matrices(self) -> Iterator[torch.Tensor]:
        """One weight of every shape of product."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedAttention:
    """Weights of grouped-query attention. qkv [(N + 2 V) D, H] stacks the three projections."""

    config: AttentionConfig
    eps: float
    arithmetic: Arithmetic
    qkv: torch.Tensor
    out: torch.Tensor
    qkv_bias: torch.Tensor | None = None
    out_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    sinks: torch.Tensor | None = None

    def __call__(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch
    ) -> torch.Tensor:
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = self.arithmetic.linear(x_TH, self.qkv, self.qkv_bias)
        qkv = qkv.view(len(x_TH), -1, config.head_dim)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rms_norm(q, self.q_norm, self.eps), rms_norm(k, self.k_norm, self.eps)
        q, k = apply_rope(q, batch.cos, batch.sin), apply_rope(k, batch.cos, batch.sin)
        arena.write(layer, batch.pages, batch.offsets, k, v)
        attended = batch.backend.run(arena, layer, q, batch.attention, self.heads)
        return self.arithmetic.linear(attended.flatten(1), self.out, self.out_bias)

    @property
    def heads(self) -> Heads:
        """What a backend of attention has to know."""
        return Heads(scale=self.config.scale, window=self.config.window, sinks=self.sinks)

    def matrices(self) -> Iterator[torch.Tensor]:
        yield from (self.qkv, self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Attention and MLP, each behind one of the two `norms` and added to what came in."""

    norms: tuple[torch.Tensor, torch.Tensor]
    attention: Attention
    mlp: Mlp

    def __call__(
        self, x_TH: torch.Tensor, eps: float, arena: KvArena, layer: int, batch: Batch
    ) -> torch.Tensor:
        return self.feed(self.attend(x_TH, eps, arena, layer, batch), eps)

    def attend(
        self, x_TH: torch.Tensor, eps: float, arena: KvArena, layer: int, batch: Batch
    ) -> torch.Tensor:
        """The first half: hidden states [T, H] with attention added."""
        return x_TH + self.attention(rms_norm(x_TH, self.norms[0], eps), arena, layer, batch)

    def feed(self, x_TH: torch.Tensor, eps: float) -> torch.Tensor:
        """The second half: hidden states [T, H] with the MLP added. It knows no rows."""
        return x_TH + self.mlp(rms_norm(x_TH, self.norms[1], eps))

    def matrices(self) -> Iterator[torch.Tensor]:
        """One weight of every shape of product."""
        yield from self.attention.matrices()
        yield from self.mlp.matrices()
