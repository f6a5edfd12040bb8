"""The last token of each slot, kept on the device, and the ids that stand for it in a pass."""

from __future__ import annotations

from typing import Any

import torch

from batchgen.exec.kernels.use import uses_kernels


def in_flight(slots: Any) -> Any:
    """The ids that stand for the last tokens of `slots`: below 0. Its own inverse."""
    return -1 - slots


def gather_by_torch(last: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """See `gather`."""
    return torch.where(given < 0, last[in_flight(given).clamp(min=0).long()], given)


def keep_by_torch(
    last: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor, vocab_size: int
) -> None:
    """See `keep`; a slot of -1 keeps nothing."""
    some = slots >= 0
    fine = (tokens >= 0) & (tokens < vocab_size)
    last[slots[some].long()] = torch.where(fine, tokens, 0)[some].to(last.dtype)


def gather(last: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Ids [T] of a pass: `given`, and where it is below 0 what `last` has of that slot."""
    if not uses_kernels(given):
        return gather_by_torch(last, given)
    from batchgen.exec.kernels.last_tokens import gather_tokens

    return gather_tokens(last, given)


def keep(last: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor, vocab_size: int) -> None:
    """`last[slots[r]] = tokens[r]`; no slot comes twice. What marks a bad row has no embedding, and
    the next pass may be in flight with it: it is kept as 0."""
    if not uses_kernels(tokens):
        keep_by_torch(last, slots, tokens, vocab_size)
        return
    from batchgen.exec.kernels.last_tokens import keep_tokens

    keep_tokens(last, slots, tokens, vocab_size)
