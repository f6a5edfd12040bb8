"""Paged attention in torch for exact mode: decoding rows and chunks alike over (query tile, 64-key
block) pairs, so that a token's bits depend on nothing but its row.

Shapes: T tokens, C tiles of Q tokens, V kv heads, G queries per kv head, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.base import Heads
from batchgen.exec.attention.blocks import Pairs, attend, pair_up
from batchgen.exec.batch import IntArray, PassRows

# Attention reduces blocks of this many keys at fixed positions, whatever a page is.
BLOCK_TOKENS = 64
LARGE_TILE = 64
GROUP_ELEMENTS = 1 << 22  # of one kv head


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGroup:
    """C tiles of Q neighbouring tokens of a row.

    `tokens` [C, Q] flat token numbers (padding repeats the tile's last one); `scatter` and `where`
    name the real ones as in ChunkGroup. `keys` [M, BLOCK_TOKENS]: token numbers in the arena.
    """

    tokens: torch.Tensor
    scatter: torch.Tensor
    where: torch.Tensor
    keys: torch.Tensor
    pairs: Pairs


class ExactBackend:
    """`groups`: queries per kv head; `windows`: those of the model's layers, 0 for no window."""

    name = "torch"

    def __init__(self, groups: int, windows: Sequence[int] = (0,)) -> None:
        self._groups = groups
        self._windows = tuple(sorted(set(windows)))

    def prepare(self, arena: KvArena, rows: PassRows) -> dict[int, tuple[TileGroup, ...]]:
        return {window: _tile_groups(arena, rows, self._groups, window) for window in self._windows}

    def run(
        self,
        arena: KvArena,
        layer: int,
        q_TND: torch.Tensor,
        prepared: dict[int, tuple[TileGroup, ...]],
        heads: Heads,
    ) -> torch.Tensor:
        out_TND = q_TND.new_empty(*q_TND.shape[:2], heads.value_dim or q_TND.shape[2])
        for group in prepared[heads.window]:
            _tile_attention(arena, layer, q_TND, group, heads, out_TND)
        return out_TND


def _tile_attention(
    arena: KvArena,
    layer: int,
    q_TND: torch.Tensor,
    group: TileGroup,
    heads: Heads,
    out_TND: torch.Tensor,
) -> None:
    """All query heads of a kv head share a product, [Q * G, D] x [D, BLOCK_TOKENS]; Q makes it a
    multiple of 16 rows high, so that a token's bits do not depend on its tile (see
    `batchgen.exec.exact`).
    """
    num_tiles, size = group.tokens.shape
    kv_heads, head_dim = arena.layout.heads, q_TND.shape[2]
    q_CQVGD = q_TND[group.tokens].view(num_tiles, size, kv_heads, -1, head_dim)
    sinks_VX = None
    if heads.sinks is not None:
        sinks_VX = heads.sinks.view(kv_heads, 1, -1).expand(-1, size, -1).flatten(1)
    out_CVXD = attend(
        q_CQVGD.transpose(1, 2).flatten(2, 3),
        group.pairs,
        lambda a, b: arena.load_tokens(layer, group.keys[a:b]),
        BLOCK_TOKENS,
        heads.scale,
        heads.value_dim,
        sinks_VX,
    )
    dim = out_CVXD.shape[-1]
    out_CQVGD = out_CVXD.view(num_tiles, kv_heads, size, -1, dim).transpose(1, 2)
    flat = out_CQVGD.reshape(num_tiles * size, -1, dim)
    out_TND[group.where] = flat.index_select(0, group.scatter).to(q_TND.dtype)


def _tile_groups(arena: KvArena, rows: PassRows, groups: int, window: int) -> tuple[TileGroup, ...]:
    """Cut all segments into tiles: small ones for decoding rows, larger ones for long chunks."""
    found: list[TileGroup] = []
    lengths, firsts = rows.lengths, rows.firsts
    smallest = 16 // math.gcd(16, groups)  # the product is a multiple of 16 rows high
    sizes = np.select([lengths <= smallest, lengths <= 16], [smallest, 16], LARGE_TILE)
    for size in sorted(set(sizes.tolist())):
        chosen = np.flatnonzero(sizes == size)
        pieces = -(-lengths[chosen] // size)
        owner = np.repeat(chosen, pieces)
        skipped = size * (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        start, first = rows.starts[owner] + skipped, firsts[owner] + skipped
        length = np.minimum(lengths[owner] - skipped, size)
        first_block = _first_blocks(start, window)
        counts = (start + length - 1) // BLOCK_TOKENS + 1 - first_block
        order = np.argsort(-counts, kind="stable")
        # Bounded memory: a group's partial sums over all blocks are kept until they are added.
        share = np.cumsum(counts[order]) * groups * size * arena.layout.head_dim
        for part in np.split(order, np.flatnonzero(np.diff(share // GROUP_ELEMENTS)) + 1):
            slots = rows.slots[owner[part]]
            tile = (slots, start[part], length[part], first[part])
            found.append(_tile_group(arena, *tile, size, groups, window))
    return tuple(found)


def _first_blocks(starts: IntArray, window: int) -> IntArray:
    """The first block that a tile's first token sees."""
    if not window:
        return np.zeros_like(starts)
    blocks: IntArray = np.maximum(starts + 1 - window, 0) // BLOCK_TOKENS
    return blocks


def _tile_group(
    arena: KvArena,
    slots: IntArray,
    starts: IntArray,
    lengths: IntArray,
    firsts: IntArray,
    size: int,
    groups: int,
    window: int,
) -> TileGroup:
    query = np.arange(size)[None, :]
    within = np.minimum(query, lengths[:, None] - 1)
    tokens = firsts[:, None] + within
    real = query < lengths[:, None]
    last = starts + lengths - 1
    first_block = _first_blocks(starts, window)
    tiles, blocks, widths = pair_up(last // BLOCK_TOKENS + 1 - first_block)
    begins = ((first_block[tiles] + blocks) * BLOCK_TOKENS)[:, None]
    keys = np.minimum(begins + np.arange(BLOCK_TOKENS), last[tiles][:, None])
    ends = (starts[:, None] + within)[tiles] + 1
    visible = np.clip(ends - begins, 0, BLOCK_TOKENS)
    skipped = np.clip(ends - window - begins, 0, BLOCK_TOKENS) if window else None
    return TileGroup(
        tokens=arena.tensor(tokens),
        scatter=arena.tensor(np.flatnonzero(real)),
        where=arena.tensor(tokens[real]),
        keys=arena.tensor(arena.token_numbers(slots[tiles][:, None], keys)),
        pairs=Pairs(
            tiles=arena.tensor(tiles),
            widths=widths,
            visible=arena.tensor(np.repeat(visible, groups, axis=1)),
            skipped=None if skipped is None else arena.tensor(np.repeat(skipped, groups, axis=1)),
        ),
    )
