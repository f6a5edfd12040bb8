"""A layer of a transformer: norms, grouped-query attention, an MLP. Knows no backend of attention.

Norms are float32 inside whatever the weights are. Shapes: T tokens, H hidden, N query heads, V kv
heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from batchgen.exec import fused
from batchgen.exec.arena import KvArena
from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.attention import Heads
from batchgen.exec.attention.paged import PagedPass
from batchgen.exec.batch import Batch, Wanted
from batchgen.exec.config import AttentionConfig
from batchgen.exec.kernels.use import uses_kernels
from batchgen.exec.mlp import Mlp
from batchgen.exec.rotary import apply_rope


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension, statistics in float32."""
    if fused.is_fused(x):
        return fused.rms_norm(x, weight, eps)
    if uses_kernels(x):
        from batchgen.exec.kernels import norms

        return norms.rms_norm(x, weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def add_rms_norm(
    x_TH: torch.Tensor, added_TH: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of both, and its RMS norm."""
    if fused.is_fused(x_TH):
        return fused.add_rms_norm(x_TH, added_TH, weight, eps)
    if uses_kernels(x_TH):
        from batchgen.exec.kernels import norms

        return norms.add_rms_norm(x_TH, added_TH, weight, eps)
    x_TH = x_TH + added_TH
    return x_TH, rms_norm(x_TH, weight, eps)


class Attention(Protocol):
    """From normed hidden states to what is added to them; KV of the pass goes into the arena."""

    def __call__(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch
    ) -> torch.Tensor: ...

    def of_wanted(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch, wanted: Wanted
    ) -> torch.Tensor:
        """The same, [R, H], for the wanted tokens alone; KV of all."""
        ...

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
        q = self._place(x_TH, arena, layer, batch)
        attended = batch.backend.run(arena, layer, q, batch.attention, self.heads)
        return self.arithmetic.linear(attended.flatten(1), self.out, self.out_bias)

    def of_wanted(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch, wanted: Wanted
    ) -> torch.Tensor:
        q = self._place(x_TH, arena, layer, batch).index_select(0, wanted.tokens)
        if len(q):
            q = batch.backend.run(arena, layer, q, wanted.attention, self.heads)
        return self.arithmetic.linear(q.flatten(1), self.out, self.out_bias)

    def _place(self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch) -> torch.Tensor:
        """Queries [T, N, D]; keys and values go into the arena."""
        qkv = self.arithmetic.linear(x_TH, self.qkv, self.qkv_bias)
        qkv = qkv.view(len(x_TH), -1, self.config.head_dim)
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = self.q_norm, self.k_norm
        if fused.is_fused(qkv) and fused.is_fused(arena.storage):
            return fused.place_qkv(qkv, norms, self.eps, arena, layer, batch)
        if isinstance(batch.attention, PagedPass) and uses_kernels(qkv):
            from batchgen.exec.kernels.place_qkv import place_qkv

            paged = batch.attention
            places = (*batch.angles, paged.positions, paged.token_rows, paged.tables)
            return place_qkv(qkv, norms, self.eps, *places, arena.storage, layer)
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        if norms is not None:
            q, k = rms_norm(q, norms[0], self.eps), rms_norm(k, norms[1], self.eps)
        q, k = apply_rope(q, batch.cos, batch.sin), apply_rope(k, batch.cos, batch.sin)
        arena.write(layer, batch.pages, batch.offsets, k, v)
        return q

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
        attended = self.attention(rms_norm(x_TH, self.norms[0], eps), arena, layer, batch)
        return self._behind_attention(x_TH, attended, eps)

    def _behind_attention(
        self, x_TH: torch.Tensor, attended_TH: torch.Tensor, eps: float
    ) -> torch.Tensor:
        x_TH, normed = add_rms_norm(x_TH, attended_TH, self.norms[1], eps)
        return x_TH + self.mlp(normed)

    def last(
        self,
        x_TH: torch.Tensor,
        eps: float,
        arena: KvArena,
        layer: int,
        batch: Batch,
        wanted: Wanted,
    ) -> torch.Tensor:
        """Hidden states [R, H] of the wanted tokens, behind which nothing needs the others."""
        normed = rms_norm(x_TH, self.norms[0], eps)
        attended = self.attention.of_wanted(normed, arena, layer, batch, wanted)
        x_RH = x_TH.index_select(0, wanted.tokens)
        return self._behind_attention(x_RH, attended, eps) if len(x_RH) else x_RH

    def attend(
        self, x_TH: torch.Tensor, eps: float, arena: KvArena, layer: int, batch: Batch
    ) -> torch.Tensor:
        """The first half alone: hidden states [T, H] with attention added."""
        return x_TH + self.attention(rms_norm(x_TH, self.norms[0], eps), arena, layer, batch)

    def feed(self, x_TH: torch.Tensor, eps: float) -> torch.Tensor:
        """The second half alone: hidden states [T, H] with the MLP added. It knows no rows."""
        return x_TH + self.mlp(rms_norm(x_TH, self.norms[1], eps))

    def matrices(self) -> Iterator[torch.Tensor]:
        """One weight of every shape of product."""
        yield from self.attention.matrices()
        yield from self.mlp.matrices()
