"""The two products of routed experts: gate and up with SwiGLU, and down; sorts and adds nothing.

Idea. A block of BLOCK_M rows is of one expert. Product 1 gathers the tokens of its rows and
multiplies them by the rows of gate and up: row j of gate and row j of up lie beside each other in
its tile, so that both results end in the same thread, which stores silu(gate) * up: half of what
was computed, and gate and up never leave registers. Product 2 multiplies that by down, times the
weight of the pair. Both store by pair, wherever the sort has put it.

Loads are along the depth, 16 bytes per thread, several stages ahead (cp.async); from 64 rows on,
sm_90 multiplies straight from shared memory (wgmma). Programs are numbered so that GROUP_M
blocks share a tile of weights in L2. There are as many as there can be blocks; those beyond the
last one leave at once. Unsorted, every pair is a block of its own, one row of BLOCK_M: up to a
quarter as many pairs as experts, when hardly any two share one.

Bytes and FLOPs: see `experts`.
"""

# Parameters of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.expert_tiles import default_tiles
from batchgen.exec.kernels.launching import INTERPRETED, AheadCase


@triton.jit
def _block_and_column(num_blocks, COLUMNS: tl.constexpr, GROUP_M: tl.constexpr):
    """Which block of rows and which tile of columns a program computes."""
    program = tl.program_id(0)
    first = program // (GROUP_M * COLUMNS) * GROUP_M
    blocks = tl.minimum(num_blocks - first, GROUP_M)
    inside = program % (GROUP_M * COLUMNS)
    return first + inside % blocks, inside // blocks


@triton.jit
def _rows(pairs, block, num_pairs, SORTED: tl.constexpr, BLOCK_M: tl.constexpr):
    """Pairs of a block, and which of its rows are pairs."""
    row = tl.arange(0, BLOCK_M)
    if SORTED:
        pair = tl.load(pairs + block * BLOCK_M + row)
        live = pair < num_pairs
    else:
        pair = block + row
        live = row == 0
    return tl.where(live, pair, 0).to(tl.int64), live


@triton.jit
def _multiply(
    a,  # first element of every row
    b,  # first element of every column
    live,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Rows times columns, both contiguous along DEPTH, in float32."""
    EVEN: tl.constexpr = DEPTH % BLOCK_K == 0
    step = tl.arange(0, BLOCK_K)
    a_at = a[:, None] + step[None, :]
    b_at = b[None, :] + step[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, DEPTH, BLOCK_K):
        if EVEN:
            left = tl.load(a_at, mask=live[:, None], other=0.0)
            right = tl.load(b_at)
        else:
            left = tl.load(a_at, mask=live[:, None] & (k + step < DEPTH)[None, :], other=0.0)
            right = tl.load(b_at, mask=(k + step < DEPTH)[:, None], other=0.0)
        if INTERPRETED:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
        a_at += BLOCK_K
        b_at += BLOCK_K
    return total


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def _gate_up(
    x,
    gate_up,
    bias,
    slots,
    pairs,
    block_experts,
    inner,
    num_pairs,
    num_blocks,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    TOP_K: tl.constexpr,
    SORTED: tl.constexpr,
    CLAMPED: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    HALF: tl.constexpr = BLOCK_N // 2
    block, tile = _block_and_column(num_blocks, tl.cdiv(WIDTH, HALF), GROUP_M)
    expert = tl.load(block_experts + block)
    if expert < 0:
        return
    slot = expert
    if slots is not None:
        slot = tl.load(slots + expert)
    pair, live = _rows(pairs, block, num_pairs, SORTED, BLOCK_M)
    # Even columns are gates, odd ones their ups.
    side_by_side = tl.arange(0, BLOCK_N)
    neuron = tl.minimum(tile * HALF + side_by_side // 2, WIDTH - 1)
    weight_row = neuron + side_by_side % 2 * WIDTH
    both = _multiply(
        x + pair // TOP_K * X_STRIDE,
        gate_up + slot.to(tl.int64) * EXPERT_STRIDE + weight_row * ROW_STRIDE,
        live,
        HIDDEN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        INTERPRETED,
    )
    gate, up = tl.split(tl.reshape(both, [BLOCK_M, HALF, 2]))
    column = tile * HALF + tl.arange(0, HALF)
    inside = column < WIDTH
    if bias is not None:
        of = bias + expert.to(tl.int64) * (2 * WIDTH) + column
        gate += tl.load(of, mask=inside, other=0.0).to(tl.float32)[None, :]
        up += tl.load(of + WIDTH, mask=inside, other=0.0).to(tl.float32)[None, :]
    if CLAMPED:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
        value = (up + 1.0) * (gate / (1.0 + tl.exp(-ALPHA * gate)))
    else:
        value = gate / (1.0 + tl.exp(-gate)) * up
    at = inner + pair[:, None] * WIDTH + column[None, :]
    tl.store(at, value.to(inner.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def _down(
    inner,
    down,
    bias,
    weights,
    slots,
    pairs,
    block_experts,
    parts,
    num_pairs,
    num_blocks,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    SORTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    block, tile = _block_and_column(num_blocks, tl.cdiv(HIDDEN, BLOCK_N), GROUP_M)
    expert = tl.load(block_experts + block)
    if expert < 0:
        return
    slot = expert
    if slots is not None:
        slot = tl.load(slots + expert)
    pair, live = _rows(pairs, block, num_pairs, SORTED, BLOCK_M)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(column, HIDDEN - 1)
    part = _multiply(
        inner + pair * WIDTH,
        down + slot.to(tl.int64) * EXPERT_STRIDE + weight_row * ROW_STRIDE,
        live,
        WIDTH,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        INTERPRETED,
    )
    inside = column < HIDDEN
    if bias is not None:
        of = bias + expert.to(tl.int64) * HIDDEN + column
        part += tl.load(of, mask=inside, other=0.0).to(tl.float32)[None, :]
    part *= tl.load(weights + pair, mask=live, other=0.0).to(tl.float32)[:, None]
    at = parts + pair[:, None] * HIDDEN + column[None, :]
    tl.store(at, part.to(parts.dtype.element_ty), mask=live[:, None] & inside[None, :])


def gate_up_product(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    bias: torch.Tensor | None,
    slots: torch.Tensor | None,
    blocks: tuple[torch.Tensor, torch.Tensor],
    clamp: tuple[float, float] | None,
    tiles: Mapping[str, int],
    k: int,
    inner: torch.Tensor,
) -> None:
    """Gated products of x [T, H] into `inner` [T * k, I]. `blocks`: pairs and experts of blocks, or
    twice the flat chosen experts where nothing is sorted."""
    num_pairs, width = inner.shape
    pairs, block_experts = blocks
    limit, alpha = clamp or (0.0, 0.0)
    _gate_up[(len(block_experts) * triton.cdiv(width, tiles["UP_N"] // 2),)](
        x,
        gate_up,
        bias,
        slots,
        pairs,
        block_experts,
        inner,
        num_pairs,
        len(block_experts),
        X_STRIDE=x.stride(0),
        EXPERT_STRIDE=gate_up.stride(0),
        ROW_STRIDE=gate_up.stride(1),
        TOP_K=k,
        CLAMPED=clamp is not None,
        LIMIT=limit,
        ALPHA=alpha,
        **_shared(tiles, "UP", x.shape[1], width, INTERPRETED),
        num_warps=tiles["UP_WARPS"],
        num_stages=tiles["UP_STAGES"],
    )


def down_product(
    inner: torch.Tensor,
    down: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor,
    slots: torch.Tensor | None,
    blocks: tuple[torch.Tensor, torch.Tensor],
    tiles: Mapping[str, int],
    parts: torch.Tensor,
) -> None:
    """Products of `inner` [T * k, I], times `weights` [T, k], into `parts` [T * k, H]."""
    num_pairs, hidden = parts.shape
    pairs, block_experts = blocks
    _down[(len(block_experts) * triton.cdiv(hidden, tiles["DOWN_N"]),)](
        inner,
        down,
        bias,
        weights,
        slots,
        pairs,
        block_experts,
        parts,
        num_pairs,
        len(block_experts),
        EXPERT_STRIDE=down.stride(0),
        ROW_STRIDE=down.stride(1),
        **_shared(tiles, "DOWN", hidden, inner.shape[1], INTERPRETED),
        num_warps=tiles["DOWN_WARPS"],
        num_stages=tiles["DOWN_STAGES"],
    )


def _shared(
    tiles: Mapping[str, int], product: str, hidden: int, width: int, interpreted: bool
) -> dict[str, Any]:
    """Constants of both kernels."""
    return {
        "HIDDEN": hidden,
        "WIDTH": width,
        "SORTED": bool(tiles["SORTED"]),
        "BLOCK_M": tiles["BLOCK_M"],
        "BLOCK_N": tiles[f"{product}_N"],
        "BLOCK_K": tiles[f"{product}_K"],
        "GROUP_M": tiles["GROUP_M"],
        "INTERPRETED": interpreted,
    }


def _ahead(
    name: str, num_tokens: int, k: int, num_experts: int, hidden: int, width: int, full: bool
) -> tuple[AheadCase, AheadCase]:
    """Both products; `full`: with slots, biases and the clamp of gpt-oss."""
    tiles = default_tiles(num_tokens * k, num_experts, hidden, width, 2)
    pointers = {
        "x": "*bf16",
        "gate_up": "*bf16",
        "inner": "*bf16",
        "down": "*bf16",
        "weights": "*fp32",
        "parts": "*bf16",
        "pairs": "*i32",
        "block_experts": "*i32",
        "bias": "*bf16" if full else "constexpr",
        "slots": "*i32" if full else "constexpr",
        "num_pairs": "i32",
        "num_blocks": "i32",
    }
    up = {
        "X_STRIDE": hidden,
        "EXPERT_STRIDE": 2 * width * hidden,
        "ROW_STRIDE": hidden,
        "TOP_K": k,
        "CLAMPED": full,
        "LIMIT": 7.0,
        "ALPHA": 1.702,
    }
    down = {"EXPERT_STRIDE": hidden * width, "ROW_STRIDE": width}
    cases = []
    for product, kernel, given in (("UP", _gate_up, up), ("DOWN", _down, down)):
        constants = {**given, **_shared(tiles, product, hidden, width, False)}
        if not full:
            constants = {**constants, "bias": None, "slots": None}
        signature = {n: pointers.get(n, "constexpr") for n in kernel.arg_names}
        cases.append(
            AheadCase(
                name=f"{name}, {product.lower()}",
                kernel=kernel,
                signature=signature,
                constants=constants,
                num_warps=tiles[f"{product}_WARPS"],
                num_stages=tiles[f"{product}_STAGES"],
                tensor_cores=tiles["BLOCK_M"] >= 64,
            )
        )
    return cases[0], cases[1]


AHEAD = (
    *(
        case
        for tokens in (1, 16, 64, 128, 256, 512, 1024)
        for case in _ahead(f"E128 k8, {tokens} tokens", tokens, 8, 128, 2048, 768, False)
    ),
    *_ahead("E8 k2, 4096 tokens", 4096, 2, 8, 4096, 14336, False),
    *_ahead("E32 k4, clamp, bias, slots, 128 tokens", 128, 4, 32, 2880, 2880, True),
    *_ahead("E32 k4, clamp, bias, slots, 4096 tokens", 4096, 4, 32, 2880, 2880, True),
)
