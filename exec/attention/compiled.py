"""Paged attention in the compiled library of the CPU; the same code in both modes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.base import Heads
from batchgen.exec.batch import IntArray, PassRows
from batchgen.exec.compiled import KINDS, load_library


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTable:
    """All S segments: `tables` [S, W] physical pages, and [S] first flat token, its position,
    number of tokens."""

    tables: IntArray
    firsts: IntArray
    starts: IntArray
    lengths: IntArray


class CompiledBackend:
    """Only where `compiled.is_compiled` says yes. Threads are those of torch."""

    name = "compiled"

    def prepare(self, arena: KvArena, rows: PassRows) -> SegmentTable:
        width = (int(rows.ends.max()) - 1) // arena.page_tokens + 1
        return SegmentTable(
            tables=np.ascontiguousarray(arena.tables.pages[rows.slots, :width]),
            firsts=np.ascontiguousarray(rows.firsts),
            starts=np.ascontiguousarray(rows.starts),
            lengths=np.ascontiguousarray(rows.lengths),
        )

    def run(
        self,
        arena: KvArena,
        layer: int,
        q_TND: torch.Tensor,
        prepared: SegmentTable,
        heads: Heads,
    ) -> torch.Tensor:
        library, layout = load_library(), arena.layout
        q_TND = q_TND.contiguous()
        value_dim = heads.value_dim or layout.head_dim
        out_TND = q_TND.new_empty(*q_TND.shape[:2], value_dim)
        sizes = (ctypes.c_int64 * 11)(
            *prepared.tables.shape,
            layer,
            layout.layers,
            layout.parts,
            q_TND.shape[1],
            layout.heads,
            arena.page_tokens,
            layout.head_dim,
            value_dim,
            heads.window,
        )
        kind = KINDS.get(q_TND.dtype, -1) if q_TND.dtype == arena.storage.dtype else -1
        if library is None or library.batchgen_paged_attention(
            kind,
            torch.get_num_threads(),
            q_TND.data_ptr(),
            arena.storage.data_ptr(),
            out_TND.data_ptr(),
            prepared.tables.ctypes.data,
            prepared.firsts.ctypes.data,
            prepared.starts.ctypes.data,
            prepared.lengths.ctypes.data,
            0 if heads.sinks is None else heads.sinks.data_ptr(),
            sizes,
            heads.scale,
        ):
            raise ValueError(f"no compiled attention for {tuple(q_TND.shape)} {q_TND.dtype}")
        return out_TND
