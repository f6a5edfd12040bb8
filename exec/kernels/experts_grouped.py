"""Routed experts of large groups by torch's own grouped products; knows no small ones.

Idea. With hundreds of rows per expert, a grouped matrix product written for the GPU (CUTLASS, with
loads and products in different warps) may beat a plain Triton one by more than what it costs to
gather rows first and to apply the gates afterwards. Groups need no padding here: `group_rows` with
blocks of one row is a plain stable sort by expert, and where the groups end stays on the device.
The gates add their bias, and leave for `combine_experts` where each pair went.

Bytes over those of `experts`: per pair 2 * H elements (the gather's store, the product's load) and
4 * I (gate and up, stored and loaded), 1.4 GB for 16,384 tokens, k 8, H 2048, I 768: 0.32 ms at 4.3
TB/s, to be earned by products that take 1.57 ms at best. From which size it does is to be measured.
"""

# Parameters of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.combine_experts import combine_experts
from batchgen.exec.kernels.group_rows import group_rows
from batchgen.exec.kernels.launching import AheadCase, Work


def activate_reference(both: torch.Tensor, clamp: tuple[float, float] | None) -> torch.Tensor:
    """silu(gate) * up, or the clamped form: `clamp` is (limit, alpha)."""
    gate, up = both.chunk(2, -1)
    if clamp is None:
        return torch.nn.functional.silu(gate) * up
    limit, alpha = clamp
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(gate * alpha)


@triton.jit
def _activate(
    both,
    bias,
    chosen,
    pairs,
    inner,
    places,
    WIDTH: tl.constexpr,
    CLAMPED: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """A piece of one row; its pair is told the row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = column < WIDTH
    pair = tl.load(pairs + row)
    if tl.program_id(1) == 0:
        tl.store(places + pair, row.to(tl.int32))
    at = both + row * (2 * WIDTH) + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        of = bias + tl.load(chosen + pair).to(tl.int64) * (2 * WIDTH) + column
        gate += tl.load(of, mask=inside, other=0.0).to(tl.float32)
        up += tl.load(of + WIDTH, mask=inside, other=0.0).to(tl.float32)
    if CLAMPED:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
        value = (up + 1.0) * (gate / (1.0 + tl.exp(-ALPHA * gate)))
    else:
        value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(inner + row * WIDTH + column, value.to(inner.dtype.element_ty), mask=inside)


def experts_grouped(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    slots: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `experts`, by `torch.nn.functional.grouped_mm`. Its space is torch's own."""
    k = chosen.shape[1]
    width = down.shape[2]
    if len(x) == 0:
        return torch.empty_like(x) if out is None else out
    # Groups are in the order of the weights, which is that of the slots.
    owners = chosen
    if slots is not None:
        owners = slots.to(torch.int32).index_select(0, chosen.flatten())
    groups = group_rows(owners, len(gate_up), 1)
    ends = groups.counts.cumsum(0, dtype=torch.int32)
    gathered = x.index_select(0, groups.pairs // k)
    grouped_mm = torch.nn.functional.grouped_mm
    both = grouped_mm(gathered, gate_up.transpose(1, 2), offs=ends)
    inner = both.new_empty(len(both), width)
    places = torch.empty_like(groups.pairs)
    block = min(triton.next_power_of_2(width), 1024)
    limit, alpha = clamp or (0.0, 0.0)
    _activate[(len(both), triton.cdiv(width, block))](
        both,
        gate_up_bias,
        chosen,
        groups.pairs,
        inner,
        places,
        WIDTH=width,
        CLAMPED=clamp is not None,
        LIMIT=limit,
        ALPHA=alpha,
        BLOCK_I=block,
        num_warps=4,
    )
    parts = grouped_mm(inner, down.transpose(1, 2), offs=ends)
    return combine_experts(
        parts, k, places=places, weights=weights, chosen=chosen, bias=down_bias, out=out
    )


def experts_grouped_work(num_pairs: int, hidden: int, width: int, element_size: int) -> Work:
    """FLOPs, and what this moves per pair: gather, both products, gates, sum; no weights."""
    moved = 2 * hidden + hidden + 2 * width + 3 * width + width + 2 * hidden
    return Work(6.0 * num_pairs * hidden * width, float(num_pairs * moved * element_size))


def _ahead(name: str, width: int, clamp: tuple[float, float] | None) -> AheadCase:
    limit, alpha = clamp or (0.0, 0.0)
    constants = {
        "WIDTH": width,
        "CLAMPED": clamp is not None,
        "LIMIT": limit,
        "ALPHA": alpha,
        "BLOCK_I": 1024,
    }
    signature = {
        "both": "*bf16",
        "bias": "*bf16" if clamp else "constexpr",
        "chosen": "*i32",
        "pairs": "*i32",
        "inner": "*bf16",
        "places": "*i32",
        **dict.fromkeys(constants, "constexpr"),
    }
    return AheadCase(
        name=name,
        kernel=_activate,
        signature=signature,
        constants=constants if clamp else {**constants, "bias": None},
    )


AHEAD = (_ahead("I768", 768, None), _ahead("I2880, clamped, with bias", 2880, (7.0, 1.702)))
