"""A tiny model for servers, and the folder of their helpers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
for package in ("starlette", "uvicorn", "openai"):
    pytest.importorskip(package)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from batchgen.exec.init import init_model

    return init_model(tmp_path_factory.mktemp("serve") / "tiny")
