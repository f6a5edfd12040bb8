"""Kernels run on the GPU where there is one, else in Triton's interpreter.

The interpreter has to be asked for before a kernel is imported, which is why it is done here.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if HAS_TRITON else ["*"]


def _count_with_new_numpy() -> None:
    """The interpreter of Triton 3.6 makes loop bounds of arrays in a way that NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


if HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1":
    _count_with_new_numpy()


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def wide(device: torch.device) -> torch.dtype:
    """The dtype of most tests: what models run in on a GPU; the interpreter knows no bfloat16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
