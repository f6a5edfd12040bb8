"""Lines of the kernel table: small fused operations at sizes that fill the chip, beside torch's."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from cell import Cell, Made, tune_of

TARGET = 0.85
TOKENS = 32768
BF16 = torch.bfloat16


def _normal(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=BF16, device=device).normal_()


def _cell(kernel: str, shape: str, make: Callable[[torch.device], Made], other: str = "") -> Cell:
    def seeded(device: torch.device, seed: int) -> Made:
        torch.manual_seed(seed)
        return make(device)

    return Cell(kernel=kernel, shape=shape, make=seeded, target=TARGET, other=other)


def norm(hidden: int, tokens: int = TOKENS) -> Cell:
    def make(device: torch.device) -> Made:
        from batchgen.exec.kernels.norms import rms_norm, rms_norm_work

        x, weight = _normal(device, tokens, hidden), _normal(device, hidden)
        return Made(
            call=lambda: rms_norm(x, weight, 1e-6),
            work=rms_norm_work(tokens, hidden, 2),
            other=lambda: functional.rms_norm(x, (hidden,), weight, 1e-6),
        )

    return _cell("rms_norm", f"{tokens} x {hidden}", make, "rms_norm")


def added_norm(hidden: int, tokens: int = TOKENS) -> Cell:
    def make(device: torch.device) -> Made:
        from batchgen.exec.kernels.norms import add_rms_norm, add_rms_norm_work

        x, added = _normal(device, tokens, hidden), _normal(device, tokens, hidden)
        weight = _normal(device, hidden)

        def other() -> object:
            total = x + added
            return total, functional.rms_norm(total, (hidden,), weight, 1e-6)

        return Made(
            call=lambda: add_rms_norm(x, added, weight, 1e-6),
            work=add_rms_norm_work(tokens, hidden, 2),
            other=other,
        )

    return _cell("add_rms_norm", f"{tokens} x {hidden}", make, "add, rms_norm")


def gated(tokens: int, width: int) -> Cell:
    def make(device: torch.device) -> Made:
        from batchgen.exec.kernels.swiglu import swiglu, swiglu_work

        x = _normal(device, tokens, 2 * width)
        return Made(
            call=lambda: swiglu(x),
            work=swiglu_work(tokens, width, 2),
            other=lambda: functional.silu(x[:, :width]) * x[:, width:],
        )

    return _cell("swiglu", f"{tokens} x {width}", make, "silu, mul")


def placed(
    heads: int, kv_heads: int, head_dim: int = 128, tokens: int = TOKENS, rows: int = 64
) -> Cell:
    def make(device: torch.device) -> Made:
        from batchgen.exec.kernels.place_qkv import place_qkv, place_qkv_work

        page, length = 64, tokens // rows
        num_pages = rows * -(-length // page)
        qkv = _normal(device, tokens, heads + 2 * kv_heads, head_dim)
        norms = _normal(device, head_dim), _normal(device, head_dim)
        angles = torch.rand(length, head_dim // 2, device=device)
        cos, sin = angles.cos(), angles.sin()
        positions = torch.arange(length, dtype=torch.int32, device=device).repeat(rows)
        slots = torch.arange(rows, dtype=torch.int32, device=device).repeat_interleave(length)
        pages = torch.randperm(num_pages, device=device).to(torch.int32).view(rows, -1)
        storage = torch.empty(num_pages, 2, 2, kv_heads, page, head_dim, dtype=BF16, device=device)
        return Made(
            call=lambda: place_qkv(qkv, norms, 1e-6, cos, sin, positions, slots, pages, storage, 1),
            work=place_qkv_work(tokens, heads, kv_heads, head_dim, 2),
        )

    return _cell("place_qkv", f"{tokens}, {heads}/{kv_heads} of {head_dim}", make)


def routed(tokens: int, experts: int, k: int) -> Cell:
    def make(device: torch.device) -> Made:
        from batchgen.exec.kernels.route_experts import route_experts, route_experts_work

        logits = _normal(device, tokens, experts)
        return Made(
            call=lambda: route_experts(logits, k=k),
            work=route_experts_work(logits, k),
            other=lambda: logits.float().softmax(-1).topk(k),
        )

    return _cell("route_experts", f"{tokens} x {experts}, {k} each", make, "softmax, topk")


def sampled(rows: int, vocab_size: int, draws: bool) -> Cell:
    """`draws`: temperature 0.8, the 50 best, 0.95 of the mass; else the best token."""

    def make(device: torch.device) -> Made:
        from batchgen.exec.kernels.sample import DrawColumns, sample, sample_work

        logits = _normal(device, rows, vocab_size).mul_(3.0)

        def column(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        columns = DrawColumns(
            temperature=column(0.8, torch.float64),
            top_p=column(0.95, torch.float64),
            min_p=column(0.0, torch.float64),
            top_k=column(50, torch.int64),
            seeds=torch.arange(rows, device=device),
            counters=column(3, torch.int64),
        )

        def other() -> object:
            best, ids = logits.float().div(0.8).topk(min(50, vocab_size))
            shares = best.softmax(-1)
            kept = shares.masked_fill(shares.cumsum(-1) - shares >= 0.95, 0.0)
            return ids.gather(1, torch.multinomial(kept, 1))

        return Made(
            call=lambda: sample(logits, columns if draws else None),
            work=sample_work(rows, vocab_size, 2),
            other=other if draws else lambda: logits.argmax(-1),
        )

    way = "topk, multinomial" if draws else "argmax"
    return _cell("sample", f"{rows} x {vocab_size}, {'draws' if draws else 'greedy'}", make, way)


CELLS = (
    norm(4096),
    norm(2048),
    added_norm(4096),
    added_norm(2048),
    gated(16384, 12288),
    gated(131072, 768),
    placed(32, 8),
    placed(32, 4),
    routed(131072, 128, 8),
    sampled(1024, 151936, draws=False),
    sampled(1024, 151936, draws=True),
)

# On an H200 48 heads went at 83 % of the copy, 40 at 76 %, by three tiles of 16 heads, a head per
# thread, of which the last was half empty. Now several heads per thread, in tiles that divide both.
PLACE_CHANGES = (
    {"TILE": 8, "num_warps": 1},
    {"TILE": 8, "num_warps": 2},
    {"TILE": 16, "num_warps": 1},
    {"TILE": 16, "num_warps": 2},
    {"TILE": 16, "num_warps": 4},
    {"TILE": 64, "num_warps": 4},
    {"TILE": 64, "num_warps": 2},
)
ROUTE_CHANGES = (
    {"BLOCK_T": 8},
    {"BLOCK_T": 32},
    {"BLOCK_T": 4},
    {"BLOCK_T": 16, "WARPS": 2},
    {"BLOCK_T": 16, "WARPS": 8},
    {"BLOCK_T": 32, "WARPS": 8},
)
# A program waits for its own reductions, most of them in loops, and four fit in a multiprocessor:
# more warps share a step, fewer wait less for each other; digits of 4 bits halve the steps.
CHOOSE_CHANGES = (
    {"DIGIT": 4},
    {"BLOCK": 256},
    {"BLOCK": 512},
    {"TILE": 16},
    {"TILE": 4},
    {"num_warps": 8, "maxnreg": 64},
    {"num_warps": 8},
    {"num_warps": 2, "maxnreg": 168, "TILE": 4},
    {"maxnreg": 96},
)
# Here its rows end at once: what differs is how many of its programs fit in a multiprocessor.
SEARCH_CHANGES = (
    {"BLOCK": 2048, "maxnreg": 64},
    {"BLOCK": 2048, "num_warps": 8},
)
TOPS_CHANGES = (
    {"num_warps": 8},
    {"BLOCKS": 16},
    {"BLOCKS": 64, "num_warps": 8},
    {"BLOCKS": 64},
)
DRAWS = sampled(1024, 151936, draws=True)
TUNE = (
    tune_of(placed(32, 8), PLACE_CHANGES),
    tune_of(placed(32, 4), PLACE_CHANGES),
    tune_of(routed(131072, 128, 8), ROUTE_CHANGES, "route_short"),
    tune_of(DRAWS, CHOOSE_CHANGES, "sample_choose"),
    tune_of(DRAWS, SEARCH_CHANGES, "sample_search"),
    tune_of(DRAWS, TOPS_CHANGES, "sample_tops"),
)
