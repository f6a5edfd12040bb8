"""Paged attention in plain torch: decode over (row, page) pairs, chunks in padded groups.

Reads and writes nothing but the arena. Shapes: T tokens, R decoding rows, M (row, page) pairs,
N query heads, V kv heads, G = N / V queries per kv head, P page_tokens, D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import ChunkGroup, DecodePages, PassBatch


def paged_attention(
    arena: KvArena, layer: int, q_TND: torch.Tensor, batch: PassBatch
) -> torch.Tensor:
    """Attention of all tokens of a pass over their rows' pages, KV of the pass written already.

    Returns [T, N, D] in the dtype of q.
    """
    out_TND = torch.empty_like(q_TND)
    if batch.decode is not None:
        n = batch.num_decodes
        out_TND[:n] = decode_attention(arena, layer, q_TND[:n], batch.decode)
    for group in batch.chunks:
        chunk_attention(arena, layer, q_TND, group, out_TND)
    return out_TND


def decode_attention(
    arena: KvArena, layer: int, q_RND: torch.Tensor, pairs: DecodePages
) -> torch.Tensor:
    """One query per row. Each page is reduced alone, then pages are added in order, in float32.

    No padding to the longest row: work is proportional to the pages that are really there.
    """
    keys, values = arena.gather(layer, pairs.pages)
    keys, values = keys.float(), values.float()
    num_rows, num_heads, head_dim = q_RND.shape
    num_kv_heads = keys.shape[1]
    q_RVGD = q_RND.float().view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    q_MVGD = (q_RVGD * head_dim**-0.5).index_select(0, pairs.rows)
    scores_MVGP = torch.matmul(q_MVGD, keys.transpose(-1, -2)) + pairs.mask[:, None, None, :]
    top_MVG = scores_MVGP.amax(-1)
    floor = torch.full_like(top_MVG[:1], -torch.inf)
    top_RVG = torch.cat((top_MVG, floor))[pairs.pad].amax(1)
    weights_MVGP = torch.exp(scores_MVGP - top_RVG.index_select(0, pairs.rows)[..., None])
    partial_MVGD = torch.matmul(weights_MVGP, values)
    # index_add_ adds the pages of a row one after another, first page first.
    total_RVGD = torch.zeros_like(q_RVGD).index_add_(0, pairs.rows, partial_MVGD)
    norm_RVG = torch.zeros_like(top_RVG).index_add_(0, pairs.rows, weights_MVGP.sum(-1))
    return (total_RVGD / norm_RVG[..., None]).view(q_RND.shape).to(q_RND.dtype)


def chunk_attention(
    arena: KvArena, layer: int, q_TND: torch.Tensor, group: ChunkGroup, out_TND: torch.Tensor
) -> None:
    """Attention of a group of chunks over their earlier KV and, causally, over themselves."""
    num_chunks, num_pages = group.pages.shape
    keys, values = (
        # [C * W, V, P, D] -> [C, V, W * P, D]
        x.view(num_chunks, num_pages, *x.shape[1:]).transpose(1, 2).flatten(2, 3)
        for x in arena.gather(layer, group.pages.flatten())
    )
    q_CNQD = q_TND[group.tokens].transpose(1, 2)
    out_CNQD = functional.scaled_dot_product_attention(
        q_CNQD, keys, values, attn_mask=group.mask, enable_gqa=keys.shape[1] != q_CNQD.shape[1]
    )
    flat = out_CNQD.transpose(1, 2).flatten(0, 1)
    out_TND[group.where] = flat.index_select(0, group.scatter)
