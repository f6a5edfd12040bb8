"""Token ids and page numbers that stay on the device between passes. Decides nothing.

*Idea.* Where a pass ends, its tokens are known to the device and not yet to the host. The next pass
can start before the host has seen them if their ids go from the sampler into a column [slots], and
from there into the inputs; so can the table of pages, which grows by a few entries per pass. Each
is one launch over a fixed number of entries. Indexing in torch would do as much, but has no entries
that do nothing, and a pass padded to the size of a CUDA graph has those: their slot is -1.

*Bytes* are a few per entry: the launch is all the cost.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work

BLOCK = 128


def gather_tokens_reference(
    last: torch.Tensor, slots: torch.Tensor, given: torch.Tensor
) -> torch.Tensor:
    """As `gather_tokens`."""
    return torch.where(slots >= 0, last[slots.clamp(min=0).long()], given)


def keep_tokens_reference(
    last: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor, vocab_size: int
) -> None:
    """As `keep_tokens`."""
    some = slots >= 0
    fine = (tokens >= 0) & (tokens < vocab_size)
    last[slots[some].long()] = torch.where(fine, tokens, 0)[some].to(last.dtype)


def set_pages_reference(tables: torch.Tensor, triplets: torch.Tensor) -> None:
    """As `set_pages`."""
    slots, columns, pages = triplets[triplets[:, 0] >= 0].long().unbind(1)
    tables[slots, columns] = pages.to(tables.dtype)


@triton.jit
def gather_tokens_kernel(
    last: tl.tensor,
    slots: tl.tensor,
    given: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    slot = tl.load(slots + at, mask=mask, other=-1)
    kept = tl.load(last + slot, mask=slot >= 0, other=0).to(out.dtype.element_ty)
    fresh = tl.load(given + at, mask=mask, other=0).to(out.dtype.element_ty)
    tl.store(out + at, tl.where(slot >= 0, kept, fresh), mask=mask)


@triton.jit
def keep_tokens_kernel(
    last: tl.tensor,
    slots: tl.tensor,
    tokens: tl.tensor,
    count: tl.tensor,
    vocab_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    slot = tl.load(slots + at, mask=mask, other=-1)
    token = tl.load(tokens + at, mask=mask, other=0)
    token = tl.where((token >= 0) & (token < vocab_size), token, 0)
    tl.store(last + slot, token.to(last.dtype.element_ty), mask=slot >= 0)


@triton.jit
def set_pages_kernel(
    tables: tl.tensor, triplets: tl.tensor, count: tl.tensor, stride: tl.tensor, BLOCK: tl.constexpr
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    slot = tl.load(triplets + at * 3, mask=mask, other=-1)
    column = tl.load(triplets + at * 3 + 1, mask=mask, other=0)
    page = tl.load(triplets + at * 3 + 2, mask=mask, other=0)
    target = tables + slot.to(tl.int64) * stride + column
    tl.store(target, page.to(tables.dtype.element_ty), mask=slot >= 0)


def gather_tokens(
    last: torch.Tensor,
    slots: torch.Tensor,
    given: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Input ids [T] of a pass: `last[slots[t]]`, or `given[t]` where the slot is -1 (tokens of
    prompts, and padding)."""
    if out is None:
        out = torch.empty_like(given)
    if len(slots):
        grid = (triton.cdiv(len(slots), BLOCK),)
        gather_tokens_kernel[grid](last, slots, given, out, len(slots), BLOCK=BLOCK, num_warps=4)
    return out


def keep_tokens(
    last: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor, vocab_size: int
) -> None:
    """`last[slots[r]] = tokens[r]`, but for slots of -1; no slot comes twice. A token that marks a
    bad row is kept as 0, so that the next pass looks up no embedding beyond the last."""
    if len(slots):
        grid = (triton.cdiv(len(slots), BLOCK),)
        keep_tokens_kernel[grid](
            last, slots, tokens, len(slots), vocab_size, BLOCK=BLOCK, num_warps=4
        )


def set_pages(tables: torch.Tensor, triplets: torch.Tensor) -> None:
    """`tables[slot, column] = page` for each row of `triplets` [M, 3] int32, but for slots of -1;
    no place comes twice."""
    assert triplets.is_contiguous()
    if len(triplets):
        grid = (triton.cdiv(len(triplets), BLOCK),)
        set_pages_kernel[grid](
            tables, triplets, len(triplets), tables.stride(0), BLOCK=BLOCK, num_warps=4
        )


def last_tokens_work(count: int) -> Work:
    """Of any of the three: some 12 bytes per entry."""
    return Work(flops=0.0, bytes=12.0 * count)


_CONSTANTS = {"BLOCK": BLOCK}
AHEAD = (
    AheadCase(
        name="gather_tokens",
        kernel=gather_tokens_kernel,
        signature={
            **dict.fromkeys(("last", "slots", "given", "out"), "*i32"),
            "count": "i32",
            "BLOCK": "constexpr",
        },
        constants=_CONSTANTS,
    ),
    AheadCase(
        name="keep_tokens",
        kernel=keep_tokens_kernel,
        signature={
            **dict.fromkeys(("last", "slots", "tokens"), "*i32"),
            "count": "i32",
            "vocab_size": "i32",
            "BLOCK": "constexpr",
        },
        constants=_CONSTANTS,
    ),
    AheadCase(
        name="set_pages",
        kernel=set_pages_kernel,
        signature={
            "tables": "*i32",
            "triplets": "*i32",
            "count": "i32",
            "stride": "i32",
            "BLOCK": "constexpr",
        },
        constants=_CONSTANTS,
    ),
)
