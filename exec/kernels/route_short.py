"""Routing of bfloat16 logits whose order is that of the scores: `route_experts` in its fast case.

*Idea.* What routing costs are k maxima of E keys per token; its bytes are little. Here nothing but
the logits decides (a softmax or none, no correction, no groups), and a bfloat16 logit has 16 bits:
with its expert's number, reversed, it is a key of 32 bits, half of what the general kernel has.
A thread holds keys of a token in fours and sorts them once; then only the heads of these lists
compete, and the list that had the best one moves up. The scores of the chosen alone are computed:
where they are normalised, the sum over all experts cancels.

Logits are told apart here that a softmax in float32 rounds to one score; of these the higher logit
comes first, where the general kernel and the reference put the lower number.

*Bytes* are those of `route_experts`. *Instructions* of a warp per token of 128 experts, top 8: some
20 to load and make keys, 10 to sort, 9 per maximum, 30 behind them: 130. A multiprocessor issues 4
per cycle, so that 131,072 tokens take 18 us on an H200, and their bytes 10.
"""

# Parameters of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase

LISTS = 4  # keys that a thread sorts
LEAST: tl.constexpr = tl.constexpr(-(1 << 31))


@triton.jit
def _ordered(high, low):
    return tl.maximum(high, low), tl.minimum(high, low)


@triton.jit(do_not_specialize=["num_tokens"])
def route_short_kernel(
    logits,
    weights,
    experts,
    num_tokens,
    scaling,
    LOGITS_STRIDE: tl.constexpr,
    EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two, at least EXPERTS and 4 TOP_K
    TOP_K: tl.constexpr,
    SOFTMAX: tl.constexpr,  # of all experts, else of the chosen
    NORMALISE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    WIDTH: tl.constexpr = COLUMNS // 4
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, COLUMNS)[None, :]
    live = (token < num_tokens)[:, None]
    real = column < EXPERTS
    x = tl.load(
        logits + token.to(tl.int64)[:, None] * LOGITS_STRIDE + column, mask=live & real, other=0.0
    ).to(tl.float32)
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True) >> 16  # one zero, not two
    key = ((bits ^ ((bits >> 31) & 0x7FFF)) << 16) | (COLUMNS - 1 - column)
    key = tl.where(real, key, LEAST)

    # Four lists [BLOCK_T, WIDTH], sorted: first holds the best of each.
    pairs = tl.reshape(key, [BLOCK_T, WIDTH, 2, 2])
    left, right = tl.split(pairs)
    first, second = tl.split(left)
    third, fourth = tl.split(right)
    first, second = _ordered(first, second)
    third, fourth = _ordered(third, fourth)
    first, third = _ordered(first, third)
    second, fourth = _ordered(second, fourth)
    second, third = _ordered(second, third)

    place = tl.arange(0, WIDTH)[None, :]
    kept = tl.full([BLOCK_T, WIDTH], LEAST, tl.int32)
    for i in tl.static_range(TOP_K):
        best = tl.max(first, 1)[:, None]
        kept = tl.where(place == i, best, kept)
        taken = first == best
        first = tl.where(taken, second, first)
        second = tl.where(taken, third, second)
        third = tl.where(taken, fourth, third)
        fourth = tl.where(taken, LEAST, fourth)

    chosen = COLUMNS - 1 - (kept & 0xFFFF)
    ordered = kept >> 16
    value = ((ordered ^ ((ordered >> 31) & 0x7FFF)) << 16).to(tl.float32, bitcast=True)
    inside = place < TOP_K
    value = tl.where(inside, value, float("-inf"))
    top = tl.max(value, 1)[:, None]
    weight = tl.exp(value - top)
    if SOFTMAX and not NORMALISE:
        total = tl.sum(tl.where(real, tl.exp(x - top), 0.0), 1)
    else:
        total = tl.sum(weight, 1)
    weight = weight / total[:, None] * scaling
    to = token.to(tl.int64)[:, None] * TOP_K + place
    mask = live & inside
    tl.store(weights + to, weight.to(weights.dtype.element_ty), mask=mask)
    tl.store(experts + to, chosen, mask=mask)


def columns_of(num_experts: int, k: int) -> int:
    """Keys of a token, padding included."""
    return max(triton.next_power_of_2(num_experts), LISTS * triton.next_power_of_2(k))


def default_tile(columns: int) -> dict[str, int]:
    """Tokens of a program, four of 128 experts per warp: they do not wait for each other."""
    return {"BLOCK_T": max(1, min(2048 // columns, 32)), "WARPS": 4}


def _ahead(name: str, num_experts: int, k: int, score: str) -> AheadCase:
    columns = columns_of(num_experts, k)
    tile = default_tile(columns)
    constants = {
        "LOGITS_STRIDE": num_experts,
        "EXPERTS": num_experts,
        "COLUMNS": columns,
        "TOP_K": k,
        "SOFTMAX": score == "softmax",
        "NORMALISE": True,
        "BLOCK_T": tile["BLOCK_T"],
    }
    signature = {"logits": "*bf16", "weights": "*fp32", "experts": "*i32"}
    signature |= {"num_tokens": "i32", "scaling": "fp32"}
    return AheadCase(
        name=name,
        kernel=route_short_kernel,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constants=constants,
        num_warps=tile["WARPS"],
    )


AHEAD = (
    _ahead("E128 k8", 128, 8, "softmax"),
    _ahead("E8 k2", 8, 2, "softmax"),
    _ahead("E32 k4 of the chosen", 32, 4, "chosen-softmax"),
    _ahead("E512 k10", 512, 10, "softmax"),
)
