"""Prompt chunks in padded groups of similar shape, each one dense attention.

Shapes: C chunks of a group, Q queries, W pages, S = W * page_tokens keys, N query heads, V kv
heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.base import Heads
from batchgen.exec.batch import IntArray

# A group of chunks may spend at most this factor of padded attention work over what it needs.
MAX_PADDING = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGroup:
    """Chunks of similar shape, padded together.

    `tokens` [C, Q] flat token numbers (padding repeats the chunk's last one); `scatter` and `where`
    name the real ones: flat token `where[i]` is query `scatter[i]` of [C * Q]. `pages` [C, W];
    `mask` [C, 1, Q, S] is true where a query may look.
    """

    tokens: torch.Tensor
    scatter: torch.Tensor
    where: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor


def chunk_groups(
    arena: KvArena,
    slots: IntArray,
    starts: IntArray,
    lengths: IntArray,
    firsts: IntArray,
    window: int = 0,
) -> tuple[ChunkGroup, ...]:
    """Group segments by shape, longest first, so that padding stays below MAX_PADDING."""
    order = np.lexsort((-starts, -lengths)).tolist()
    groups: list[list[int]] = []
    work = queries = keys = 0
    for i in order:
        length, context = int(lengths[i]), int(starts[i] + lengths[i])
        wider = max(keys, context)
        if groups and queries * wider * (len(groups[-1]) + 1) <= MAX_PADDING * (
            work + length * context
        ):
            groups[-1].append(i)
            work, keys = work + length * context, wider
        else:
            groups.append([i])
            work, queries, keys = length * context, length, context
    return tuple(_group(arena, slots[g], starts[g], lengths[g], firsts[g], window) for g in groups)


def _group(
    arena: KvArena,
    slots: IntArray,
    starts: IntArray,
    lengths: IntArray,
    firsts: IntArray,
    window: int,
) -> ChunkGroup:
    slots, starts, lengths, firsts = (x[:, None] for x in (slots, starts, lengths, firsts))
    query = np.arange(int(lengths.max()), dtype=np.int64)[None, :]
    # Padding queries look where the chunk's last token looks: a row with no key at all is NaN.
    within = np.minimum(query, lengths - 1)
    tokens, real = firsts + within, query < lengths
    last_page = (starts + lengths - 1) // arena.page_tokens
    columns = np.minimum(np.arange(int(last_page.max()) + 1)[None, :], last_page)
    key = np.arange(columns.shape[1] * arena.page_tokens)[None, None, :]
    position = (starts + within)[:, :, None]
    mask = key <= position
    if window:
        mask &= key > position - window
    return ChunkGroup(
        tokens=arena.tensor(tokens),
        scatter=arena.tensor(np.flatnonzero(real)),
        where=arena.tensor(tokens[real]),
        pages=arena.tensor(arena.tables.pages[slots, columns]),
        mask=arena.tensor(mask[:, None]),
    )


def attend_pages(
    arena: KvArena,
    layer: int,
    q_TND: torch.Tensor,
    group: ChunkGroup,
    heads: Heads,
    out_TND: torch.Tensor,
) -> None:
    """Attention of a group over the pages of its rows, into `out_TND`."""
    num_chunks, num_pages = group.pages.shape
    parts = [
        # [C * W, V, P, D] -> [C, V, W * P, D]
        x.view(num_chunks, num_pages, *x.shape[1:]).transpose(1, 2).flatten(2, 3)
        for x in arena.gather(layer, group.pages.flatten())
    ]
    values = parts[-1] if heads.value_dim is None else parts[-1][..., : heads.value_dim]
    attend_group(q_TND, parts[0], values, group, heads, out_TND)


def attend_group(
    q_TND: torch.Tensor,
    keys_CVSD: torch.Tensor,
    values_CVSD: torch.Tensor,
    group: ChunkGroup,
    heads: Heads,
    out_TND: torch.Tensor,
) -> None:
    """Attention of a group over keys and values that are laid out for it, into `out_TND`."""
    q_CNQD = q_TND[group.tokens].transpose(1, 2)
    if heads.sinks is None:
        out_CNQD = functional.scaled_dot_product_attention(
            q_CNQD,
            keys_CVSD,
            values_CVSD,
            attn_mask=group.mask,
            scale=heads.scale,
            enable_gqa=keys_CVSD.shape[1] != q_CNQD.shape[1],
        )
    else:
        out_CNQD = _with_sinks(q_CNQD, keys_CVSD, values_CVSD, group.mask, heads.scale, heads.sinks)
    flat = out_CNQD.transpose(1, 2).flatten(0, 1)
    out_TND[group.where] = flat.index_select(0, group.scatter)


def _with_sinks(
    q_CNQD: torch.Tensor,
    keys_CVSD: torch.Tensor,
    values_CVSD: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    sinks_N: torch.Tensor,
) -> torch.Tensor:
    """Softmax attention with one more score per head, in float32."""
    chunks, num_heads, queries, _ = q_CNQD.shape
    kv_heads = keys_CVSD.shape[1]
    q = q_CNQD.float().reshape(chunks, kv_heads, -1, q_CNQD.shape[-1]) * scale
    scores = (q @ keys_CVSD.float().transpose(2, 3)).view(chunks, num_heads, queries, -1)
    scores = scores.masked_fill(~mask, -torch.inf)
    sinks = sinks_N.view(1, -1, 1, 1).expand(chunks, -1, queries, 1)
    weights = torch.softmax(torch.cat((scores, sinks), -1), -1)[..., :-1]
    out = weights.reshape(chunks, kv_heads, -1, weights.shape[-1]) @ values_CVSD.float()
    return out.view(chunks, num_heads, queries, -1).to(q_CNQD.dtype)
