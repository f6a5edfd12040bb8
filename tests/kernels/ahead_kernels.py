"""Two kernels for the tests of `ahead`: a product by tensor cores, a sum that uses none."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase


@triton.jit
def product_kernel(a, b, c, K, SIDE: tl.constexpr, DEPTH: tl.constexpr):
    side, depth = tl.arange(0, SIDE), tl.arange(0, DEPTH)
    total = tl.zeros((SIDE, SIDE), tl.float32)
    at = 0
    while at < K:
        left = tl.load(a + side[:, None] * K + at + depth[None, :])
        right = tl.load(b + (at + depth[:, None]) * SIDE + side[None, :])
        total = tl.dot(left, right, total)
        at += DEPTH
    tl.store(c + side[:, None] * SIDE + side[None, :], total.to(tl.bfloat16))


@triton.jit
def double_kernel(x, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, 2.0 * tl.load(x + at, mask=at < count), mask=at < count)


def product(name: str, side: int, depth: int = 64, **kwargs: Any) -> AheadCase:
    types = {"a": "*bf16", "b": "*bf16", "c": "*bf16", "K": "i32:16"}
    constants = {"SIDE": side, "DEPTH": depth}
    return AheadCase(
        name=name,
        kernel=product_kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constants=constants,
        **kwargs,
    )


def double(name: str, **kwargs: Any) -> AheadCase:
    return AheadCase(
        name=name,
        kernel=double_kernel,
        signature={"x": "*fp32", "count": "i32", "BLOCK": "constexpr"},
        constants={"BLOCK": 1024},
        **kwargs,
    )


AHEAD = (product("product", 128, num_warps=8, tensor_cores=True), double("double"))
