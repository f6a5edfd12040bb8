"""Hostile cases, in processes that are forked from one where everything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from places import Reset
    from trying import Place


@pytest.fixture(scope="session")
def reset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reset]:
    from places import made

    with made(tmp_path_factory.mktemp("hostile")) as one:
        yield one


@pytest.fixture
def place(reset: Reset) -> Place:
    """A folder with a model, traces, rows, runs: as it was made."""
    return reset.fresh()
