"""Paged attention: one file per backend, behind the interface of `base`."""

from __future__ import annotations

import torch

from batchgen.exec.attention.base import Backend, Heads
from batchgen.exec.attention.compiled import CompiledBackend
from batchgen.exec.attention.exact import ExactBackend
from batchgen.exec.attention.reference import TorchBackend
from batchgen.exec.attention.triton import TritonBackend
from batchgen.exec.compiled import is_compiled
from batchgen.exec.config import LatentConfig, ModelConfig
from batchgen.exec.kernels.use import HAS_TRITON

__all__ = ["Backend", "Heads", "choose_backend"]


def choose_backend(config: ModelConfig, dtype: torch.dtype, *, exact: bool, device: str) -> Backend:
    """The fastest backend that serves this model in this mode on this device."""
    if device == "cpu" and is_compiled(dtype):
        return CompiledBackend()
    if device == "cuda" and HAS_TRITON:
        return TritonBackend()
    windows = [layer.attention.window for layer in config.layers]
    if not exact:
        return TorchBackend(windows)
    one = config.attention
    kv_heads = 1 if isinstance(one, LatentConfig) else one.num_kv_heads
    return ExactBackend(one.num_heads // kv_heads, windows)
