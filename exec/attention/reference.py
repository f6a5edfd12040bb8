"""Paged attention in plain torch, the reference: decode over (row, page) pairs, chunks in groups.

Shapes: T tokens, R decoding rows, N query heads, V kv heads, G = N / V queries per kv head, D
head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.base import Heads
from batchgen.exec.attention.blocks import Pairs, attend, pair_up
from batchgen.exec.attention.chunks import ChunkGroup, attend_pages, chunk_groups
from batchgen.exec.batch import IntArray, PassRows


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePages:
    """The decoding rows as tiles of one query and their pages as blocks.

    `order` [R]: the row of each tile, rows with more pages first; `pages` [M]: the physical page of
    each pair.
    """

    order: torch.Tensor
    pages: torch.Tensor
    pairs: Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchPass:
    """A pass for the layers of one window."""

    num_decodes: int
    decode: DecodePages | None
    chunks: tuple[ChunkGroup, ...]


class TorchBackend:
    """`windows`: those of the model's layers, 0 for full attention."""

    name = "torch"

    def __init__(self, windows: Sequence[int] = (0,)) -> None:
        self._windows = tuple(sorted(set(windows)))

    def prepare(self, arena: KvArena, rows: PassRows) -> dict[int, TorchPass]:
        n = rows.num_decodes
        chunks = (rows.slots[n:], rows.starts[n:], rows.lengths[n:], rows.firsts[n:])
        return {
            window: TorchPass(
                num_decodes=n,
                decode=_decode_pages(arena, rows.slots[:n], rows.ends[:n], window) if n else None,
                chunks=chunk_groups(arena, *chunks, window),
            )
            for window in self._windows
        }

    def run(
        self,
        arena: KvArena,
        layer: int,
        q_TND: torch.Tensor,
        prepared: dict[int, TorchPass],
        heads: Heads,
    ) -> torch.Tensor:
        one = prepared[heads.window]
        if one.decode is not None and not one.chunks:
            return decode_attention(arena, layer, q_TND, one.decode, heads)
        out_TND = q_TND.new_empty(*q_TND.shape[:2], heads.value_dim or q_TND.shape[2])
        n = one.num_decodes
        if one.decode is not None:
            out_TND[:n] = decode_attention(arena, layer, q_TND[:n], one.decode, heads)
        for group in one.chunks:
            attend_pages(arena, layer, q_TND, group, heads, out_TND)
        return out_TND


def _decode_pages(arena: KvArena, slots: IntArray, contexts: IntArray, window: int) -> DecodePages:
    """Pages from the first to the last that each row's last token sees."""
    size = arena.page_tokens
    hidden = np.maximum(contexts - window, 0) if window else np.zeros_like(contexts)
    first_page = hidden // size
    counts = -(-contexts // size) - first_page
    order = np.argsort(-counts, kind="stable")
    tiles, blocks, widths = pair_up(counts[order])
    rows = order[tiles]
    columns = first_page[rows] + blocks
    visible = np.minimum(contexts[rows] - columns * size, size)
    skipped = np.maximum(hidden[rows] - columns * size, 0)
    return DecodePages(
        order=arena.tensor(order),
        pages=arena.tensor(arena.tables.pages[slots[rows], columns]),
        pairs=Pairs(
            tiles=arena.tensor(tiles),
            widths=widths,
            visible=arena.tensor(visible[:, None]),
            skipped=arena.tensor(skipped[:, None]) if window else None,
        ),
    )


def decode_attention(
    arena: KvArena, layer: int, q_RND: torch.Tensor, decode: DecodePages, heads: Heads
) -> torch.Tensor:
    """One query per row; a block is a page, and a row's pages are added in order, in float32."""
    num_rows, num_heads, head_dim = q_RND.shape
    kv_heads = arena.layout.heads
    q_RVGD = q_RND.index_select(0, decode.order).view(num_rows, kv_heads, -1, head_dim)
    out_RVGD = attend(
        q_RVGD,
        decode.pairs,
        lambda a, b: arena.load(layer, decode.pages[a:b]),
        arena.page_tokens,
        heads.scale,
        heads.value_dim,
        None if heads.sinks is None else heads.sinks.view(kv_heads, -1),
    )
    out_RND = out_RVGD.view(num_rows, num_heads, -1).to(q_RND.dtype)
    return torch.empty_like(out_RND).index_copy_(0, decode.order, out_RND)
