"""One torch thread and small models: what these tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from batchgen.exec.init import ARCHITECTURES, init_model

    folder = tmp_path_factory.mktemp("validate_models")
    return {arch: init_model(folder / arch, arch, "tiny", seed=1) for arch in ARCHITECTURES}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 rows of 2 to 111 tokens, with output budgets of 8 to 80."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("validate_prompts") / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(16):
            ids = rng.integers(0, 256, 1 + int(rng.integers(1, 111))).tolist()
            row = {"prompt": ids, "max_tokens": int(rng.integers(8, 81))}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def alike_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 rows that begin with one of two texts of 40 tokens."""
    rng = np.random.default_rng(1)
    begins = rng.integers(0, 256, (2, 40)).tolist()
    path = tmp_path_factory.mktemp("validate_prompts") / "alike.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(16):
            ids = begins[number % 2] + rng.integers(0, 256, int(rng.integers(1, 60))).tolist()
            row = {"prompt": ids, "max_tokens": int(rng.integers(8, 60))}
            file.write(json.dumps(row) + "\n")
    return path
