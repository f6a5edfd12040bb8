"""Huge pages are a wish: tensors are what they would be without, whatever the system says."""

from __future__ import annotations

import mmap

import pytest
import torch

from batchgen.exec import system_pages
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
