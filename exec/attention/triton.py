"""Paged attention by Triton kernels: one for decoding rows, one for prompt chunks.

Runs on CUDA; in Triton's interpreter too, which is how it is tested without a GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.base import Heads
from batchgen.exec.attention.paged import PagedPass, pack, shape_of, unpack
from batchgen.exec.batch import PassRows


class TritonBackend:
    """Any window, sinks and latents: kernels are told at each call."""

    name = "triton"

    def prepare(self, arena: KvArena, rows: PassRows) -> PagedPass:
        shape = shape_of(arena, rows)
        packed = np.zeros(shape.elements, dtype=np.int32)
        pack(arena, rows, rows.token_ids, shape, packed)
        return unpack(arena.tensor(packed), shape)

    def run(
        self, arena: KvArena, layer: int, q_TND: torch.Tensor, prepared: PagedPass, heads: Heads
    ) -> torch.Tensor:
        from batchgen.exec.kernels.decode_attention import decode_attention
        from batchgen.exec.kernels.prefill_attention import prefill_attention

        shape, n = prepared.shape, prepared.shape.num_decodes
        out = q_TND.new_empty(*q_TND.shape[:2], heads.value_dim or q_TND.shape[2])
        if n:
            decode_attention(
                q_TND[:n],
                arena.storage,
                layer,
                prepared.tables,
                prepared.decode_rows,
                prepared.contexts,
                scale=heads.scale,
                window=heads.window,
                sinks=heads.sinks,
                value_dim=heads.value_dim,
                max_context=shape.max_context,
                out=out[:n],
            )
        if shape.num_chunks:
            prefill_attention(
                q_TND,
                arena.storage,
                layer,
                prepared.tables,
                slots=prepared.chunk_rows,
                starts=prepared.starts,
                firsts=prepared.firsts,
                lengths=prepared.lengths,
                num_tokens=shape.num_tokens - n,
                max_length=shape.max_length,
                scale=heads.scale,
                window=heads.window,
                sinks=heads.sinks,
                value_dim=heads.value_dim,
                out=out,
            )
        return out
