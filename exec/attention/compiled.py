"""Paged attention in the compiled library of the CPU; the same code in both modes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.base import Heads
from batchgen.exec.batch import IntArray, PassRows
from batchgen.exec.compiled import KINDS, check, load_library


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTable:
    """All S segments: `tables` [S, W] physical pages, and [S] first flat token, its position,
    number of tokens. `addresses` are theirs in this order, found once per pass."""

    tables: IntArray
    firsts: IntArray
    starts: IntArray
    lengths: IntArray
    addresses: tuple[int, int, int, int]


class Instructions(IntEnum):
    """What the processor may be asked for, each with those before it; a machine that has less uses
    less. They matter in bfloat16 alone."""

    PORTABLE = 0
    DOT_PRODUCTS = 1  # of pairs of bfloat16
    TILES = 2  # matrix tiles of bfloat16


class CompiledBackend:
    """Only where `compiled.is_compiled` says yes. Threads are those of torch.

    In bfloat16 the weights of the softmax are rounded to bfloat16 where `instructions` are used.
    """

    name = "compiled"

    def __init__(self, instructions: Instructions = Instructions.TILES) -> None:
        self.instructions = instructions

    def prepare(self, arena: KvArena, rows: PassRows) -> SegmentTable:
        width = (int(rows.ends.max()) - 1) // arena.page_tokens + 1
        tables, firsts, starts, lengths = (
            np.ascontiguousarray(array)
            for array in (
                arena.tables.pages[rows.slots, :width],
                rows.firsts,
                rows.starts,
                rows.lengths,
            )
        )
        return SegmentTable(
            tables=tables,
            firsts=firsts,
            starts=starts,
            lengths=lengths,
            addresses=(
                tables.ctypes.data,
                firsts.ctypes.data,
                starts.ctypes.data,
                lengths.ctypes.data,
            ),
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
        sizes = (ctypes.c_int64 * 12)(
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
            int(self.instructions),
        )
        kind = KINDS.get(q_TND.dtype, -1) if q_TND.dtype == arena.storage.dtype else -1
        problem = f"no compiled attention for {tuple(q_TND.shape)} {q_TND.dtype}"
        if library is None:
            raise ValueError(problem)
        failure = library.batchgen_paged_attention(
            kind,
            torch.get_num_threads(),
            q_TND.data_ptr(),
            arena.storage.data_ptr(),
            out_TND.data_ptr(),
            *prepared.addresses,
            0 if heads.sinks is None else heads.sinks.data_ptr(),
            sizes,
            heads.scale,
        )
        check(failure, problem)
        return out_TND
