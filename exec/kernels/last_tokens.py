"""Token ids that stay on the device between passes. Decides nothing.

*Idea.* Where a pass ends, its tokens are known to the device and not yet to the host. The next pass
can start before the host has seen them if their ids go from the sampler into a column [slots], and
from there into the inputs: an id below 0 says in which slot the token lies. Each is one launch over
a fixed number of entries, padding included, where indexing in torch would be three.

*Bytes* are a few per entry: the launch is all the cost.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from batchgen.exec.gpu.last import gather_by_torch, keep_by_torch
from batchgen.exec.kernels.launching import AheadCase, Work

BLOCK = 128


gather_tokens_reference, keep_tokens_reference = gather_by_torch, keep_by_torch


@triton.jit(do_not_specialize=["count"])
def gather_tokens_kernel(
    last: tl.tensor,
    given: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    known = tl.load(given + at, mask=mask, other=0)
    kept = tl.load(last + (-1 - known), mask=known < 0, other=0).to(out.dtype.element_ty)
    tl.store(out + at, tl.where(known < 0, kept, known.to(out.dtype.element_ty)), mask=mask)


@triton.jit(do_not_specialize=["count"])
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


def gather_tokens(
    last: torch.Tensor, given: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Input ids [T] of a pass: `given`, and where it is below 0 what `last` has of that slot."""
    if out is None:
        out = torch.empty_like(given)
    if len(given):
        grid = (triton.cdiv(len(given), BLOCK),)
        gather_tokens_kernel[grid](last, given, out, len(given), BLOCK=BLOCK, num_warps=4)
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


def last_tokens_work(count: int) -> Work:
    """Of either: some 12 bytes per entry."""
    return Work(flops=0.0, bytes=12.0 * count)


_CONSTANTS = {"BLOCK": BLOCK}
AHEAD = (
    AheadCase(
        name="gather_tokens",
        kernel=gather_tokens_kernel,
        signature={
            **dict.fromkeys(("last", "given", "out"), "*i32"),
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
)
