"""The ragged batch of one pass: flat tokens, where their KV goes, what they attend to.

Pure bookkeeping done once per pass; the layers then run without any Python per row.
Order of tokens: first one token per decoding row, then the prompt chunks one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from batchgen.exec.arena import IntArray, KvArena
from batchgen.exec.blocks import Pairs, pair_up

# A group of chunks may spend at most this factor of padded attention work over what it needs.
MAX_PADDING = 1.5
# Exact mode: attention reduces blocks of this many keys at fixed positions, whatever a page is.
BLOCK_TOKENS = 64
LARGE_TILE = 64
GROUP_ELEMENTS = 1 << 22  # of one kv head


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens [start, start + length) of one row; its KV before `start` is there already."""

    slot: int
    start: int
    length: int


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
class TileGroup:
    """Exact mode: C tiles of Q neighbouring tokens of a row, decoding rows and chunks alike.

    `tokens` [C, Q] flat token numbers (padding repeats the tile's last one); `scatter` and `where`
    name the real ones as in ChunkGroup. `keys` [M, BLOCK_TOKENS]: token numbers in the arena.
    """

    tokens: torch.Tensor
    scatter: torch.Tensor
    where: torch.Tensor
    keys: torch.Tensor
    pairs: Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGroup:
    """Chunks of similar shape, padded together: C chunks, Q queries, S = W * page_tokens keys.

    `tokens` [C, Q] flat token numbers (padding repeats the chunk's last one); `scatter` and `where`
    name the real ones: flat token `where[i]` is query `scatter[i]` of [C * Q]. `pages` [C, W];
    `mask` [C, 1, Q, S] is true where a query may look.
    """

    tokens: torch.Tensor
    scatter: torch.Tensor
    where: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTable:
    """All S segments as the compiled attention reads them: `tables` [S, W] physical pages, and [S]
    first flat token, its position, number of tokens."""

    tables: IntArray
    firsts: IntArray
    starts: IntArray
    lengths: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBatch:
    """One pass over T tokens. `pages` and `offsets` [T] say where each token's KV is written.

    What attention reads: `segments` where it is compiled, `tiles` in exact mode, else `decode` and
    `chunks`.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    pages: torch.Tensor
    offsets: torch.Tensor
    num_decodes: int
    segments: SegmentTable | None = None
    decode: DecodePages | None = None
    chunks: tuple[ChunkGroup, ...] = ()
    tiles: tuple[TileGroup, ...] = ()


def build_batch(
    arena: KvArena,
    token_ids: IntArray,
    decodes: Sequence[Segment],
    chunks: Sequence[Segment],
    *,
    exact_queries: int = 0,
    compiled: bool = False,
) -> PassBatch:
    """Lay out one pass. `token_ids` [T]: decodes, then chunks; their pages are reserved already.

    `exact_queries`: queries per kv head of the model for exact mode, 0 for the fast one.
    `compiled`: the attention is that of `exec.compiled`, which serves both modes.
    """
    segments = [*decodes, *chunks]
    lengths = np.array([s.length for s in segments], dtype=np.int64)
    starts = np.array([s.start for s in segments], dtype=np.int64)
    slots = np.array([s.slot for s in segments], dtype=np.int64)
    firsts = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(firsts, lengths)
    positions = np.repeat(starts, lengths) + within
    columns, offsets = np.divmod(positions, arena.page_tokens)
    pages = arena.tables.pages[np.repeat(slots, lengths), columns]
    n = len(decodes)
    batch = PassBatch(
        token_ids=arena.tensor(token_ids),
        positions=arena.tensor(positions),
        pages=arena.tensor(pages),
        offsets=arena.tensor(offsets),
        num_decodes=n,
    )
    if compiled:
        width = int(positions.max()) // arena.page_tokens + 1
        tables = np.ascontiguousarray(arena.tables.pages[slots, :width])
        table = SegmentTable(tables=tables, firsts=firsts, starts=starts, lengths=lengths)
        return replace(batch, segments=table)
    if exact_queries:
        tiles = _tile_groups(arena, slots, starts, lengths, firsts, exact_queries)
        return replace(batch, tiles=tiles)
    return replace(
        batch,
        decode=_decode_pages(arena, slots[:n], starts[:n] + 1) if n else None,
        chunks=_chunk_groups(arena, chunks, firsts[n:]),
    )


def _decode_pages(arena: KvArena, slots: IntArray, contexts: IntArray) -> DecodePages:
    counts = -(-contexts // arena.page_tokens)
    order = np.argsort(-counts, kind="stable")
    tiles, blocks, widths = pair_up(counts[order])
    rows = order[tiles]
    visible = np.minimum(contexts[rows] - blocks * arena.page_tokens, arena.page_tokens)
    return DecodePages(
        order=arena.tensor(order),
        pages=arena.tensor(arena.tables.pages[slots[rows], blocks]),
        pairs=Pairs(
            tiles=arena.tensor(tiles), widths=widths, visible=arena.tensor(visible[:, None])
        ),
    )


def _tile_groups(
    arena: KvArena,
    slots: IntArray,
    starts: IntArray,
    lengths: IntArray,
    firsts: IntArray,
    queries: int,
) -> tuple[TileGroup, ...]:
    """Cut all segments into tiles: small ones for decoding rows, larger ones for long chunks."""
    groups: list[TileGroup] = []
    smallest = 16 // math.gcd(16, queries)  # the product is a multiple of 16 rows high
    sizes = np.select([lengths <= smallest, lengths <= 16], [smallest, 16], LARGE_TILE)
    for size in sorted(set(sizes.tolist())):
        chosen = np.flatnonzero(sizes == size)
        pieces = -(-lengths[chosen] // size)
        owner = np.repeat(chosen, pieces)
        skipped = size * (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        start, first = starts[owner] + skipped, firsts[owner] + skipped
        length = np.minimum(lengths[owner] - skipped, size)
        counts = (start + length - 1) // BLOCK_TOKENS + 1
        order = np.argsort(-counts, kind="stable")
        # Bounded memory: a group's partial sums over all blocks are kept until they are added.
        share = np.cumsum(counts[order]) * queries * size * arena.storage.shape[-1]
        parts = np.split(order, np.flatnonzero(np.diff(share // GROUP_ELEMENTS)) + 1)
        for part in parts:
            rows = owner[part]
            tile_start, tile_first = start[part], first[part]
            groups.append(
                _tile_group(arena, slots[rows], tile_start, length[part], tile_first, size, queries)
            )
    return tuple(groups)


def _tile_group(
    arena: KvArena,
    slots: IntArray,
    starts: IntArray,
    lengths: IntArray,
    firsts: IntArray,
    size: int,
    queries: int,
) -> TileGroup:
    query = np.arange(size)[None, :]
    within = np.minimum(query, lengths[:, None] - 1)
    tokens = firsts[:, None] + within
    real = query < lengths[:, None]
    last = starts + lengths - 1
    tiles, blocks, widths = pair_up(last // BLOCK_TOKENS + 1)
    keys = np.minimum(
        blocks[:, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS), last[tiles][:, None]
    )
    visible = np.clip(
        (starts[:, None] + within)[tiles] + 1 - blocks[:, None] * BLOCK_TOKENS, 0, BLOCK_TOKENS
    )
    return TileGroup(
        tokens=arena.tensor(tokens),
        scatter=arena.tensor(np.flatnonzero(real)),
        where=arena.tensor(tokens[real]),
        keys=arena.tensor(arena.token_numbers(slots[tiles][:, None], keys)),
        pairs=Pairs(
            tiles=arena.tensor(tiles),
            widths=widths,
            visible=arena.tensor(np.repeat(visible, queries, axis=1)),
        ),
    )


def _chunk_groups(
    arena: KvArena, chunks: Sequence[Segment], firsts: IntArray
) -> tuple[ChunkGroup, ...]:
    """Group chunks by shape, longest first, so that padding stays below MAX_PADDING."""
    order = sorted(range(len(chunks)), key=lambda i: (-chunks[i].length, -chunks[i].start, i))
    groups: list[list[int]] = []
    work = queries = keys = 0
    for i in order:
        length, context = chunks[i].length, chunks[i].start + chunks[i].length
        wider = max(keys, context)
        if groups and queries * wider * (len(groups[-1]) + 1) <= MAX_PADDING * (
            work + length * context
        ):
            groups[-1].append(i)
            work, keys = work + length * context, wider
        else:
            groups.append([i])
            work, queries, keys = length * context, length, context
    return tuple(_chunk_group(arena, [chunks[i] for i in g], firsts[g]) for g in groups)


def _chunk_group(arena: KvArena, chunks: Sequence[Segment], firsts: IntArray) -> ChunkGroup:
    lengths = np.array([c.length for c in chunks], dtype=np.int64)[:, None]
    starts = np.array([c.start for c in chunks], dtype=np.int64)[:, None]
    slots = np.array([c.slot for c in chunks], dtype=np.int64)[:, None]
    contexts = starts + lengths
    query = np.arange(int(lengths.max()), dtype=np.int64)[None, :]
    tokens = firsts[:, None] + np.minimum(query, lengths - 1)
    real = query < lengths
    last_page = (contexts - 1) // arena.page_tokens
    columns = np.minimum(np.arange(int(last_page.max()) + 1)[None, :], last_page)
    key = np.arange(columns.shape[1] * arena.page_tokens)[None, None, :]
    # Padding queries look where the chunk's last token looks: a row with no key at all is NaN.
    mask = key <= (starts + np.minimum(query, lengths - 1))[:, :, None]
    return ChunkGroup(
        tokens=arena.tensor(tokens),
        scatter=arena.tensor(np.flatnonzero(real)),
        where=arena.tensor(tokens[real]),
        pages=arena.tensor(arena.tables.pages[slots, columns]),
        mask=arena.tensor(mask[:, None]),
    )
