"""Huge pages are a wish: tensors are what they would be without, whatever the system says."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch

from batchgen.exec import system_pages
from batchgen.exec.arena import KvArena
from batchgen.exec.config import KvLayout
from batchgen.exec.system_pages import HUGE_PAGE_BYTES, LEAST_BYTES, empty_in_huge_pages


@pytest.mark.parametrize("size", [1, 1000, LEAST_BYTES // 2 - 1, LEAST_BYTES // 2, 5_000_003])
def test_a_tensor_is_whole_and_begins_with_a_huge_page_if_large(size: int) -> None:
    tensor = empty_in_huge_pages((size, 1), torch.bfloat16)
    assert tensor.shape == (size, 1)
    assert tensor.is_contiguous()
    if tensor.nbytes >= LEAST_BYTES and system_pages.HUGE is not None:
        assert tensor.data_ptr() % HUGE_PAGE_BYTES == 0
    tensor.fill_(3)
    assert int((tensor == 3).sum()) == size


def test_pages_that_are_taken_at_once_are_whole_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(system_pages, "_advise", lambda: lambda *args: asked.append(args))
    system_pages.take_now(mmap.PAGESIZE - 1, 3 * mmap.PAGESIZE)
    system_pages.take_now(0, 2 * system_pages.MOST_TAKEN_BYTES)
    system_pages.take_now(1, mmap.PAGESIZE)  # no whole page
    page, populate = mmap.PAGESIZE, system_pages.POPULATE_WRITE
    assert asked == [(page, 2 * page, populate), (0, system_pages.MOST_TAKEN_BYTES, populate)]
    monkeypatch.setattr(system_pages, "_advise", lambda: None)
    system_pages.take_now(0, 10 * page)


def present_pages(address: int, size: int) -> tuple[int, int]:
    """How many of the whole pages within this memory the system holds, and how many there are."""
    page = mmap.PAGESIZE
    begin, end = -(-address // page) * page, (address + size) // page * page
    flags = (ctypes.c_ubyte * ((end - begin) // page))()
    mincore = ctypes.CDLL(None).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert mincore(begin, end - begin, flags) == 0
    return sum(flag & 1 for flag in flags), len(flags)


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such call")
def test_an_arena_has_its_first_pages_from_the_start() -> None:
    layout = KvLayout(layers=1, parts=2, heads=1, head_dim=64)
    # 40 MB: what is larger than 32 MB is fresh memory, never some that was used before.
    arena = KvArena("hbm", 1280, layout, page_tokens=64, dtype=torch.float32)
    there, pages = present_pages(arena.storage.data_ptr(), arena.storage.nbytes)
    advise, other = system_pages._advise(), mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(other))
    assert advise is not None
    if advise(address, mmap.PAGESIZE, system_pages.POPULATE_WRITE) == 0:  # since 5.14
        assert there == pages
    assert not arena.storage.any()


def test_a_system_that_refuses_or_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def refuse(address: int, size: int, advice: int) -> int:
        asked.append((address, size))
        return -1

    monkeypatch.setattr(system_pages, "_advise", lambda: refuse)
    tensor = empty_in_huge_pages((LEAST_BYTES,), torch.bfloat16)
    ((address, size),) = asked
    assert address == tensor.data_ptr()
    assert 0 <= tensor.nbytes - size < mmap.PAGESIZE  # whole pages, none of another's
    monkeypatch.setattr(system_pages, "_advise", lambda: None)
    assert empty_in_huge_pages((LEAST_BYTES,), torch.bfloat16).nbytes == 2 * LEAST_BYTES
    assert len(asked) == 1
