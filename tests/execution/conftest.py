"""One torch thread in these tests: tiny models gain nothing from more, and on a busy machine the
threads of an operation wait for each other (measured: 7 s against 160 s). Also makes the helpers
of this folder importable: test folders are no packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
