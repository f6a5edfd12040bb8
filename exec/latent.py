"""Multi-head latent attention: what is kept per token is one latent and one rotary key.

Two ways to the same result. *Absorbed*: the projection to keys goes into the queries and that to
values behind the attention, so that all heads attend to the latents as they are kept; right for few
tokens with a long past. *Expanded*: keys and values of all heads are computed from the latents
again; fewer multiplications where a chunk has many tokens. Exact mode absorbs always, because a
token's bits must not depend on how its prompt is cut.

Shapes: T tokens, N heads, L latent, P rotary, X nope, D value elements of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.attention import Backend, Heads
from batchgen.exec.attention.chunks import ChunkGroup, attend_group
from batchgen.exec.attention.paged import PagedPass
from batchgen.exec.batch import Batch, Wanted
from batchgen.exec.config import LatentConfig
from batchgen.exec.kernels.use import uses_kernels
from batchgen.exec.layers import rms_norm
from batchgen.exec.rotary import apply_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Weights of latent attention. q_up [N (X + P), q_rank or H]; kv_down [L + P, H]; kv_up
    [N (X + D), L] holds a head's key rows above its value rows; out [H, N D]."""

    config: LatentConfig
    eps: float
    arithmetic: Arithmetic
    q_down: torch.Tensor | None
    q_down_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    q_up: torch.Tensor
    kv_down: torch.Tensor
    kv_down_bias: torch.Tensor | None
    kv_norm: torch.Tensor
    kv_up: torch.Tensor
    out: torch.Tensor
    out_bias: torch.Tensor | None

    def __call__(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch
    ) -> torch.Tensor:
        q_TNX, q_TNP = self._place(x_TH, arena, layer, batch)
        out_TND = self._attend(q_TNX, q_TNP, arena, layer, batch)
        return self.arithmetic.linear(out_TND.flatten(1), self.out, self.out_bias)

    def of_wanted(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch, wanted: Wanted
    ) -> torch.Tensor:
        q_TNX, q_TNP = self._place(x_TH, arena, layer, batch)
        if not len(wanted.tokens):
            return x_TH[:0]
        q_RNX, q_RNP = (q.index_select(0, wanted.tokens) for q in (q_TNX, q_TNP))
        out_RND = self._absorbed(q_RNX, q_RNP, arena, layer, batch.backend, wanted.attention)
        return self.arithmetic.linear(out_RND.flatten(1), self.out, self.out_bias)

    def _place(
        self, x_TH: torch.Tensor, arena: KvArena, layer: int, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [T, N, X] and [T, N, P]; latents and rotary keys go into the arena."""
        config, linear = self.config, self.arithmetic.linear
        q_in = x_TH
        if self.q_down is not None and self.q_norm is not None:
            q_in = rms_norm(linear(x_TH, self.q_down, self.q_down_bias), self.q_norm, self.eps)
        q = linear(q_in, self.q_up).view(len(x_TH), config.num_heads, -1)
        q_TNX, q_TNP = q.split((config.nope_dim, config.rope_dim), dim=-1)
        down = linear(x_TH, self.kv_down, self.kv_down_bias)
        latent_TL, key_TP = down.split((config.kv_rank, config.rope_dim), dim=-1)
        if isinstance(batch.attention, PagedPass) and not batch.expanded and uses_kernels(q):
            from batchgen.exec.kernels.place_latent import place_latent

            paged = batch.attention
            places = (*batch.angles, paged.positions, paged.token_rows, paged.tables)
            norm = (self.kv_norm, self.eps)
            q_TNP = place_latent(latent_TL, key_TP, q_TNP, *norm, *places, arena.storage, layer)
            return q_TNX, q_TNP
        q_TNP = apply_rope(q_TNP, batch.cos, batch.sin)
        latent_TL = rms_norm(latent_TL, self.kv_norm, self.eps)
        key_TP = apply_rope(key_TP[:, None], batch.cos, batch.sin)[:, 0]
        arena.write(layer, batch.pages, batch.offsets, torch.cat((latent_TL, key_TP), -1)[:, None])
        return q_TNX, q_TNP

    def _attend(
        self,
        q_TNX: torch.Tensor,
        q_TNP: torch.Tensor,
        arena: KvArena,
        layer: int,
        batch: Batch,
    ) -> torch.Tensor:
        if batch.absorbed is None and not batch.expanded:
            return self._absorbed(q_TNX, q_TNP, arena, layer, batch.backend, batch.attention)
        out_TND = q_TNX.new_empty(*q_TNX.shape[:2], self.config.v_dim)
        if batch.absorbed is not None:
            chosen = batch.absorbed
            out_TND[chosen] = self._absorbed(
                q_TNX[chosen], q_TNP[chosen], arena, layer, batch.backend, batch.attention
            )
        q_TNE = torch.cat((q_TNX, q_TNP), -1)
        for group in batch.expanded:
            self._expanded(q_TNE, arena, layer, group, out_TND)
        return out_TND

    def _absorbed(
        self,
        q_TNX: torch.Tensor,
        q_TNP: torch.Tensor,
        arena: KvArena,
        layer: int,
        backend: Backend,
        prepared: Any,
    ) -> torch.Tensor:
        to_keys_NXL, to_values_NDL = self._by_head()
        q_TNL = self.arithmetic.per_head(q_TNX, to_keys_NXL)
        q = torch.cat((q_TNL, q_TNP), -1)
        out_TNL = backend.run(arena, layer, q, prepared, self.heads)
        return self.arithmetic.per_head(out_TNL, to_values_NDL.transpose(1, 2))

    def _expanded(
        self,
        q_TNE: torch.Tensor,
        arena: KvArena,
        layer: int,
        group: ChunkGroup,
        out_TND: torch.Tensor,
    ) -> None:
        config = self.config
        (kept,) = arena.gather(layer, group.pages.flatten())
        # [C * W, 1, page, L + P] -> [C, S, L + P]
        kept_CSL = kept.view(len(group.pages), -1, kept.shape[-1])
        latent, rotary = kept_CSL.split((config.kv_rank, config.rope_dim), dim=-1)
        both = self.arithmetic.linear(latent, self.kv_up)
        both = both.view(*kept_CSL.shape[:2], config.num_heads, -1).transpose(1, 2)
        nope, values_CNSD = both.split((config.nope_dim, config.v_dim), dim=-1)
        rotary = rotary[:, None].expand(-1, config.num_heads, -1, -1)
        keys_CNSE = torch.cat((nope, rotary), -1)
        attend_group(q_TNE, keys_CNSE, values_CNSD, group, self.heads, out_TND)

    def _by_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The two halves of kv_up, [N, X, L] and [N, D, L]."""
        config = self.config
        by_head = self.kv_up.view(config.num_heads, -1, config.kv_rank)
        to_keys, to_values = by_head.split((config.nope_dim, config.v_dim), dim=1)
        return to_keys, to_values

    @property
    def heads(self) -> Heads:
        """What a backend of attention has to know: values are the keys' first elements."""
        return Heads(scale=self.config.scale, value_dim=self.config.kv_rank)

    def matrices(self) -> Iterator[torch.Tensor]:
        if self.q_down is not None:
            yield self.q_down
        to_keys, to_values = self._by_head()
        yield from (self.q_up, self.kv_down, to_keys[0].T, to_values[0], self.out)
