"""Where the small parts of these tests are."""

from __future__ import annotations

from pathlib import Path

import pytest

PARTS = Path(__file__).parent / "parts"


@pytest.fixture
def liars() -> str:
    return str(PARTS / "liars.py")


@pytest.fixture
def honest() -> str:
    return str(PARTS / "honest.py")
