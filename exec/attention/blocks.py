"""Attention as independent (query tile, key block) pairs, combined per tile in the order of blocks.

Work is proportional to the blocks that are really there: no padding to the longest row. The
arithmetic of a tile does not depend on the other tiles. Reads keys through a callback and knows no
pages. Shapes: C tiles, X query rows of a tile (all heads of a kv head together), M pairs, V kv
heads, B keys of a block, D head_dim, E value_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from batchgen.exec.batch import IntArray

# Keys and values of one slice of pairs stay in the processor's cache. Measured on the CPU (bf16, 64
# keys of 4 heads of 64, one thread): 324 pages take 5 ms in slices of 16 and 12 ms in slices of 2.
SLICE_ELEMENTS = 1 << 18
DEVICE_SLICE_ELEMENTS = 1 << 26  # other devices want few launches; this bounds their memory
# A block without a visible key: finite, so that no NaN appears, and its weight is exactly zero.
FLOOR = -1e30

Load = Callable[[int, int], tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs block by block: the first block of all C tiles, then the second of those that have one.

    Tiles with more blocks come first, so that block b concerns the first `widths[b]` tiles.
    `tiles` [M]; `visible` [M, X] or [M, 1]: a query row sees the block's keys before this one,
    and, with a window, those from `skipped` on (None: from the first on).
    """

    tiles: torch.Tensor
    widths: tuple[int, ...]
    visible: torch.Tensor
    skipped: torch.Tensor | None = None


def pair_up(counts: IntArray) -> tuple[IntArray, IntArray, tuple[int, ...]]:
    """Tile and block number of each pair, and the widths. `counts` [C], at least 1, falling."""
    widths = np.searchsorted(-counts, -np.arange(counts[0]), side="left")
    tiles = np.arange(int(widths.sum())) - np.repeat(np.cumsum(widths) - widths, widths)
    blocks = np.repeat(np.arange(len(widths)), widths)
    return tiles, blocks, tuple(widths.tolist())


def attend(
    q_CVXD: torch.Tensor,
    pairs: Pairs,
    load: Load,
    block_tokens: int,
    scale: float,
    value_dim: int | None = None,
    sinks_VX: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention [C, V, X, E] in float32 over keys and values that are loaded by slices.

    `load(a, b)` gives keys and values of pairs [a, b), each [b - a, V, B, D] in float32; they need
    not outlive the next call. With `value_dim` it gives keys alone, and values are their first
    elements. `sinks_VX`: one more score of each query row, without a value.
    """
    num_tiles, heads, width, head_dim = q_CVXD.shape
    count = len(pairs.tiles)
    q_CVXD = q_CVXD.float() * scale
    total_MVXE = q_CVXD.new_empty(count, heads, width, value_dim or head_dim)
    top_MVX, norm_MVX = (q_CVXD.new_empty(count, heads, width) for _ in range(2))
    key_B = torch.arange(block_tokens, device=q_CVXD.device)
    hidden_MXB = key_B >= pairs.visible[..., None]
    if pairs.skipped is not None:
        hidden_MXB |= key_B < pairs.skipped[..., None]
    elements = SLICE_ELEMENTS if q_CVXD.device.type == "cpu" else DEVICE_SLICE_ELEMENTS
    step = max(1, elements // (heads * block_tokens * max(head_dim, width)))
    for a in range(0, count, step):
        b = min(a + step, count)
        parts = [x.flatten(0, 1) for x in load(a, b)]
        keys, values = parts[0], parts[-1] if value_dim is None else parts[-1][..., :value_dim]
        queries = q_CVXD.index_select(0, pairs.tiles[a:b]).flatten(0, 1)
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(b - a, heads, width, -1)
        scores.masked_fill_(hidden_MXB[a:b, None], -torch.inf)
        top = torch.amax(scores, -1).clamp_min_(FLOOR)
        weights = scores.sub_(top[..., None]).exp_()
        top_MVX[a:b] = top
        norm_MVX[a:b] = weights.sum(-1)
        torch.bmm(weights.flatten(0, 1), values, out=total_MVXE[a:b].flatten(0, 1))
    best_CVX = top_MVX[:num_tiles].clone()
    begin = 0
    for size in pairs.widths:
        torch.maximum(best_CVX[:size], top_MVX[begin : begin + size], out=best_CVX[:size])
        begin += size
    if sinks_VX is not None:
        best_CVX = torch.maximum(best_CVX, sinks_VX)
    scale_MVX = top_MVX.sub_(best_CVX.index_select(0, pairs.tiles)).exp_()
    total_MVXE.mul_(scale_MVX[..., None])
    norm_MVX.mul_(scale_MVX)
    # Blocks are added one after another, first block first: the order that exact mode promises.
    begin = num_tiles
    for size in pairs.widths[1:]:
        total_MVXE[:size] += total_MVXE[begin : begin + size]
        norm_MVX[:size] += norm_MVX[begin : begin + size]
        begin += size
    norm_CVX = norm_MVX[:num_tiles]
    if sinks_VX is not None:
        norm_CVX = norm_CVX + (sinks_VX - best_CVX).exp_()
    return total_MVXE[:num_tiles] / norm_CVX[..., None]
