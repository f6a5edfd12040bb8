"""Where layers run Triton kernels: on CUDA tensors, and in tests where a test says so."""

from __future__ import annotations

import importlib.util

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
# A test that runs a model through interpreted kernels on the CPU sets this.
INTERPRETED_ON_CPU = False


def uses_kernels(x: torch.Tensor) -> bool:
    """Whether operations on tensors like `x` are kernels of this package."""
    return HAS_TRITON and (x.device.type == "cuda" or INTERPRETED_ON_CPU)
