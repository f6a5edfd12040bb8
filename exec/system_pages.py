"""Asks the system for huge pages, and for pages before they are used; wishes, and never an error.

Products read weights of many megabytes again and again: in pages of 4 KiB they wait for addresses
to be translated, most of all in a virtual machine. Where the system gives huge pages only to those
who ask (`madvise`, as most do), this asks.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
from collections.abc import Callable, Sequence

import torch

HUGE_PAGE_BYTES = 2 << 20
LEAST_BYTES = 2 * HUGE_PAGE_BYTES
HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
POPULATE_WRITE = 23  # of Linux 5.14; what does not know it refuses
MOST_TAKEN_BYTES = 64 << 20


def ask_huge_pages(address: int, size: int) -> None:
    """For the whole pages within `size` bytes at `address`, best before they are written first."""
    advise = _advise()
    if advise is None or size < LEAST_BYTES:
        return
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    advise(begin, end - begin, HUGE)  # refused where the system has none


def take_now(address: int, size: int) -> None:
    """The first `MOST_TAKEN_BYTES` of memory that will be used from its beginning on: its pages
    come now, not one by one in the middle of a pass, where virtual machines may take milliseconds
    for each."""
    advise = _advise()
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + min(size, MOST_TAKEN_BYTES)) // mmap.PAGESIZE * mmap.PAGESIZE
    if advise is not None and end > begin:
        advise(begin, end - begin, POPULATE_WRITE)


def empty_in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the CPU that begins with a huge page, if it is large; not initialised."""
    size = math.prod(shape)
    if size * dtype.itemsize < LEAST_BYTES or _advise() is None:
        return torch.empty(shape, dtype=dtype)
    room = torch.empty(size + HUGE_PAGE_BYTES // dtype.itemsize, dtype=dtype)
    skipped = -room.data_ptr() % HUGE_PAGE_BYTES // dtype.itemsize
    tensor = room[skipped : skipped + size].view(tuple(shape))
    ask_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


@functools.cache
def _advise() -> Callable[..., int] | None:
    if HUGE is None or sys.platform != "linux":
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int
    found: Callable[..., int] = advise
    return found
