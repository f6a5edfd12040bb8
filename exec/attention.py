"""Paged attention: compiled where there is a compiler, else in plain torch, the reference.

In torch: decode over (row, page) pairs, chunks in padded groups; exact mode runs decode and chunks
alike over (query tile, 64-key block) pairs. Reads nothing but the arena. Shapes: T tokens, R
decoding rows, C tiles of Q tokens, N query heads, V kv heads, G = N / V queries per kv head, D
head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from batchgen.exec import compiled
from batchgen.exec.arena import KvArena
from batchgen.exec.batch import BLOCK_TOKENS, ChunkGroup, DecodePages, PassBatch, TileGroup
from batchgen.exec.blocks import attend


def paged_attention(
    arena: KvArena, layer: int, q_TND: torch.Tensor, batch: PassBatch
) -> torch.Tensor:
    """Attention of all tokens of a pass over their rows' pages, KV of the pass written already.

    Returns [T, N, D] in the dtype of q. A batch laid out for the compiled attention needs it.
    """
    if batch.segments is not None:
        return compiled.attend(arena, layer, q_TND, batch.segments)
    if batch.decode is not None and not batch.chunks:
        return decode_attention(arena, layer, q_TND, batch.decode)
    out_TND = torch.empty_like(q_TND)
    if batch.decode is not None:
        n = batch.num_decodes
        out_TND[:n] = decode_attention(arena, layer, q_TND[:n], batch.decode)
    for group in batch.chunks:
        chunk_attention(arena, layer, q_TND, group, out_TND)
    for tiles in batch.tiles:
        tile_attention(arena, layer, q_TND, tiles, out_TND)
    return out_TND


def decode_attention(
    arena: KvArena, layer: int, q_RND: torch.Tensor, decode: DecodePages
) -> torch.Tensor:
    """One query per row; a block is a page, and a row's pages are added in order, in float32."""
    num_rows, num_heads, head_dim = q_RND.shape
    num_kv_heads = arena.flat.shape[1]
    q_RVGD = q_RND.index_select(0, decode.order).view(num_rows, num_kv_heads, -1, head_dim)
    out_RVGD = attend(
        q_RVGD,
        decode.pairs,
        lambda a, b: arena.load(layer, decode.pages[a:b]),
        arena.page_tokens,
    )
    out_RND = out_RVGD.view(num_rows, num_heads, head_dim).to(q_RND.dtype)
    return torch.empty_like(out_RND).index_copy_(0, decode.order, out_RND)


def tile_attention(
    arena: KvArena, layer: int, q_TND: torch.Tensor, group: TileGroup, out_TND: torch.Tensor
) -> None:
    """Tiles of tokens over blocks of BLOCK_TOKENS keys at fixed positions, whatever the pages are.

    All query heads of a kv head share a product, [Q * G, D] x [D, BLOCK_TOKENS]; Q makes it a
    multiple of 16 rows high, so that a token's bits do not depend on its tile (see
    `batchgen.exec.exact`).
    """
    num_tiles, size = group.tokens.shape
    num_kv_heads, head_dim = arena.flat.shape[1], q_TND.shape[2]
    q_CQVGD = q_TND[group.tokens].view(num_tiles, size, num_kv_heads, -1, head_dim)
    q_CVXD = q_CQVGD.transpose(1, 2).flatten(2, 3)
    out_CVXD = attend(
        q_CVXD,
        group.pairs,
        lambda a, b: arena.load_tokens(layer, group.keys[a:b]),
        BLOCK_TOKENS,
    )
    out_CQVGD = out_CVXD.view(num_tiles, num_kv_heads, size, -1, head_dim).transpose(1, 2)
    flat = out_CQVGD.reshape(num_tiles * size, -1, head_dim)
    out_TND[group.where] = flat.index_select(0, group.scatter).to(q_TND.dtype)


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
