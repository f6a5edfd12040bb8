"""Moves KV pages between the tensors of two tiers, and waits until they are there."""

from __future__ import annotations

import torch

from batchgen.exec import compiled
from batchgen.exec.batch import IntArray

TOGETHER = 32  # pages that torch moves at once, which takes memory for them once more
# Pages from which on each is copied alone between a GPU and the host: a guess, some microseconds
# for asking against as many on a link. Smaller ones go through memory that is not pinned.
LEAST_ALONE_BYTES = 64 << 10


def move_pages(
    source: torch.Tensor, theirs: IntArray, target: torch.Tensor, ours: IntArray
) -> None:
    """target[ours] = source[theirs], where tensors are [pages, ...]; ours and theirs may be empty.

    In few calls that let go of the interpreter: a pass that computes beside it keeps the lock for
    milliseconds, and a copy would wait for it in each. On a GPU in the current stream.
    """
    if not len(theirs):
        return
    index, place = torch.from_numpy(theirs), torch.from_numpy(ours)
    if source.device.type == target.device.type == "cpu" and compiled.is_compiled(source.dtype):
        compiled.copy_pages(source, index, target, place)
        return
    between = source.device.type != target.device.type
    for some, there in zip(index.split(TOGETHER), place.split(TOGETHER), strict=True):
        if between and source[:1].nbytes >= LEAST_ALONE_BYTES:
            _one_by_one(source, some, target, there)
        else:
            _together(source, some, target, there)
    if between:
        torch.cuda.current_stream().synchronize()


def _one_by_one(
    source: torch.Tensor, some: torch.Tensor, target: torch.Tensor, there: torch.Tensor
) -> None:
    """A copy of every page, straight from and to pinned memory, all asked for in one call."""
    torch._foreach_copy_(
        [target[page] for page in there.tolist()],
        [source[page] for page in some.tolist()],
        non_blocking=True,
    )


def _together(
    source: torch.Tensor, some: torch.Tensor, target: torch.Tensor, there: torch.Tensor
) -> None:
    """One copy, of pages that are gathered before and spread behind it."""
    moved = source.index_select(0, some.to(source.device)).to(target.device)
    target.index_copy_(0, there.to(target.device), moved)
