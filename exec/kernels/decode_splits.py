"""Splits of the keys of decoding rows: how many, which program has which, and adding them up.

Idea: see `decode_attention`. The grid is known on the host, contexts are not, so that it has room
for `most_items` + B items: the longest split is all keys divided by `most_items`, and rounding up
adds less than one split per row. A split leaves its normalised sum of values and the log2 of its
sum of weights; `decode_reduce_kernel` weighs them together and adds the sink.

Bytes: N * (E + 1) * 4 per split, written and read. Floor: 512 splits of 32 heads of 128, 17 MB
through the L2, a few microseconds; a program for each head of each row that has one split reads a
number and returns.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, num_multiprocessors
from batchgen.exec.kernels.paged_keys import search_block

# Keys of a split, at least: a partial is then under 2% of what is read (see above).
LEAST_KEYS = 256
# Programs per multiprocessor that splits aim at: about four rounds of two resident ones, so that a
# last round that is not full costs little.
PROGRAMS = 8
# Most rows that the search for an item looks at together.
SEARCH_ROWS = 1024


@triton.jit
def first_key(context, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Where the first tile with a visible key begins."""
    first = tl.maximum(context - WINDOW, 0) // TILE * TILE
    return first if WINDOW else first * 0


@triton.jit
def find_item(
    contexts,
    num_rows,
    item,
    most_items,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The row of an item, the row's first item, and keys of the longest split; the row is
    `num_rows` behind the last item."""
    lengths = tl.zeros((BLOCK_B,), tl.int32)
    for at in tl.range(0, num_rows, BLOCK_B, num_stages=1):
        rows = at + tl.arange(0, BLOCK_B)
        some = tl.load(contexts + rows, mask=rows < num_rows, other=0)
        lengths += some - first_key(some, WINDOW, TILE)
    keys = tl.cdiv(tl.cdiv(tl.sum(lengths), most_items), TILE) * TILE
    keys = tl.maximum(keys, LEAST)
    row = item * 0
    first = item * 0
    before = item * 0
    for at in tl.range(0, num_rows, BLOCK_B, num_stages=1):
        rows = at + tl.arange(0, BLOCK_B)
        some = tl.load(contexts + rows, mask=rows < num_rows, other=0)
        counts = tl.maximum(tl.cdiv(some - first_key(some, WINDOW, TILE), keys), 1)
        ends = tl.cumsum(tl.where(rows < num_rows, counts, 0)) + before
        passed = (ends <= item) & (rows < num_rows)
        row += tl.sum(passed.to(tl.int32))
        first = tl.maximum(first, tl.max(tl.where(passed, ends, 0)))
        before = tl.max(ends)
    return row, first, keys


@triton.jit
def decode_reduce_kernel(
    partials,
    sums,
    plan,
    sinks,
    out,
    out_row_stride,
    out_head_stride,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One head of one row: partials weighed by their sums, and the sink."""
    row, head = tl.program_id(0), tl.program_id(1)
    count = tl.load(plan + 2 * row + 1).to(tl.int32)
    if count < 2:
        return
    first = tl.load(plan + 2 * row).to(tl.int32)
    dims = tl.arange(0, BLOCK_E)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    acc = tl.zeros((BLOCK_E,), tl.float32)
    for at in tl.range(0, count, BLOCK_S):
        splits = at + tl.arange(0, BLOCK_S)
        place = (first + splits).to(tl.int64) * HEADS + head
        logs = tl.load(sums + place, mask=splits < count, other=float("-inf"))
        mask = (splits < count)[:, None] & (dims[None, :] < VALUE_DIM)
        part = tl.load(partials + place[:, None] * VALUE_DIM + dims[None, :], mask=mask, other=0.0)
        new_top = tl.maximum(top, tl.max(logs, 0))
        weights = tl.exp2(logs - new_top)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, 0)
        acc = acc * fade + tl.sum(part * weights[:, None], 0)
        top = new_top
    if HAS_SINKS:
        sink = tl.load(sinks + head) * 1.4426950408889634
        new_top = tl.maximum(top, sink)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.exp2(sink - new_top)
        acc = acc * fade
    to = out + row.to(tl.int64) * out_row_stride + head * out_head_stride + dims
    tl.store(to, (acc / total).to(out.dtype.element_ty), mask=dims < VALUE_DIM)


@dataclass(frozen=True, slots=True)
class Splits:
    """How a launch is cut: `num_items` bounds the pairs of row and split; without `split` they are
    the rows."""

    split: bool
    num_items: int
    most_items: int
    least_keys: int
    search_rows: int

    def floats(self, num_rows: int, num_heads: int, value_dim: int) -> tuple[int, int, int]:
        """Sizes of partials, of their sums and of the plan, whole lines of 16 bytes."""
        places = self.num_items * num_heads
        return _round_up(places * value_dim, 4), _round_up(places, 4), _round_up(2 * num_rows, 4)


def splits_for(
    num_rows: int, per_item: int, longest: int, tile: int, programs: int, device: torch.device
) -> Splits:
    """`per_item`: programs of an item; `longest`: most keys of a row."""
    least = _round_up(LEAST_KEYS, tile)
    search = search_block(num_rows, SEARCH_ROWS)
    multiprocessors = num_multiprocessors(device)
    # Enough programs for two rounds, all of them short: splits would not pay the second launch.
    many_short = num_rows * per_item >= 4 * multiprocessors and longest <= 4 * least
    if longest <= least or many_short:
        return Splits(False, num_rows, num_rows, least, search)
    most = max(1, programs * multiprocessors // per_item)
    num_items = num_rows + min(most, num_rows * -(-longest // least))
    return Splits(True, num_items, most, least, search)


def reduce_splits(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    sinks: torch.Tensor | None,
    out_BNE: torch.Tensor,
) -> None:
    """Write rows of several splits, from partials, their sums and the plan."""
    num_rows, num_heads, dim = out_BNE.shape
    block = max(16, triton.next_power_of_2(dim))
    decode_reduce_kernel[(num_rows, num_heads)](
        *parts,
        parts[0] if sinks is None else sinks,
        out_BNE,
        out_BNE.stride(0),
        out_BNE.stride(1),
        HEADS=num_heads,
        VALUE_DIM=dim,
        BLOCK_E=block,
        HAS_SINKS=sinks is not None,
        BLOCK_S=16,
        num_warps=4 if block > 128 else 2,
    )


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _reduce_case(name: str, heads: int, dim: int) -> AheadCase:
    constants = {"HEADS": heads, "VALUE_DIM": dim, "BLOCK_E": dim, "HAS_SINKS": True, "BLOCK_S": 16}
    names = ("partials", "sums", "plan", "sinks")
    types = dict.fromkeys(names, "*fp32") | {"out": "*bf16"}
    types |= {"out_row_stride": "i32:16", "out_head_stride": "i32:16"}
    return AheadCase(
        name=name,
        kernel=decode_reduce_kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        num_warps=4 if dim > 128 else 2,
    )


AHEAD = (
    _reduce_case("values of 128", 32, 128),
    _reduce_case("values of 512", 128, 512),
)
