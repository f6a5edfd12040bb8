"""The ragged batch of one pass: flat tokens, where their KV goes, what they attend to.

Pure bookkeeping done once per pass; the layers then run without any Python per row.
Order of tokens: first one token per decoding row, then the prompt chunks one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from batchgen.exec.arena import IntArray, KvArena

# A group of chunks may spend at most this factor of padded attention work over what it needs.
MAX_PADDING = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens [start, start + length) of one row; its KV before `start` is there already."""

    slot: int
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePages:
    """All (row, page) pairs of the decoding rows, row by row, pages in order.

    `pages` [M] physical pages; `rows` [M] their row; `pad` [R, max pages] index of each row's pairs
    (M where there is none); `mask` [M, page_tokens] is 0 or -inf for positions past the row's end.
    """

    pages: torch.Tensor
    rows: torch.Tensor
    pad: torch.Tensor
    mask: torch.Tensor


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
class PassBatch:
    """One pass over T tokens. `pages` and `offsets` [T] say where each token's KV is written."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    pages: torch.Tensor
    offsets: torch.Tensor
    num_decodes: int
    decode: DecodePages | None
    chunks: tuple[ChunkGroup, ...]


def build_batch(
    arena: KvArena, token_ids: IntArray, decodes: Sequence[Segment], chunks: Sequence[Segment]
) -> PassBatch:
    """Lay out one pass. `token_ids` [T]: decodes, then chunks; their pages are reserved already."""
    segments = [*decodes, *chunks]
    lengths = np.array([s.length for s in segments], dtype=np.int64)
    starts = np.array([s.start for s in segments], dtype=np.int64)
    slots = np.array([s.slot for s in segments], dtype=np.int64)
    firsts = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(firsts, lengths)
    positions = np.repeat(starts, lengths) + within
    columns, offsets = np.divmod(positions, arena.page_tokens)
    pages = arena.tables.pages[np.repeat(slots, lengths), columns]
    num_decodes = len(decodes)
    return PassBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        pages=torch.from_numpy(pages),
        offsets=torch.from_numpy(offsets),
        num_decodes=num_decodes,
        decode=_decode_pages(arena, slots[:num_decodes], starts[:num_decodes] + 1)
        if num_decodes
        else None,
        chunks=_chunk_groups(arena, chunks, firsts[num_decodes:]),
    )


def _decode_pages(arena: KvArena, slots: IntArray, contexts: IntArray) -> DecodePages:
    counts = -(-contexts // arena.page_tokens)
    rows = np.repeat(np.arange(len(slots)), counts)
    firsts = np.cumsum(counts) - counts
    columns = np.arange(len(rows)) - np.repeat(firsts, counts)
    valid = contexts[rows] - columns * arena.page_tokens
    hidden = np.arange(arena.page_tokens)[None, :] >= valid[:, None]
    pad = np.full((len(slots), int(counts.max())), len(rows), dtype=np.int64)
    pad[rows, columns] = np.arange(len(rows))
    return DecodePages(
        pages=torch.from_numpy(arena.tables.pages[slots[rows], columns]),
        rows=torch.from_numpy(rows),
        pad=torch.from_numpy(pad),
        mask=torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0.0))),
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
        tokens=torch.from_numpy(tokens),
        scatter=torch.from_numpy(np.flatnonzero(real)),
        where=torch.from_numpy(tokens[real]),
        pages=torch.from_numpy(arena.tables.pages[slots, columns]),
        mask=torch.from_numpy(mask[:, None]),
    )
