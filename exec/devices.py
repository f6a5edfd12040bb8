"""Devices: which there are, what they have free, what their errors say."""

from __future__ import annotations

import torch

from batchgen.errors import UserError
from batchgen.exec.free_memory import free_memory_bytes

DEVICES = ("cpu", "cuda")


def check_device(device: str) -> None:
    """Raise UserError unless `device` is one that this torch can use."""
    if device not in DEVICES:
        raise UserError(f"unknown device {device!r}", remedy=f"choose one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("this torch finds no cuda device", remedy="use --device cpu")


def usual_dtype(device: str) -> str:
    """Of weights and KV, where nobody asks for another: what a GPU multiplies fast, and what a CPU
    multiplies exactly."""
    return "bfloat16" if device == "cuda" else "float32"


def device_error(error: BaseException) -> tuple[str, str]:
    """The code of a row that its device cannot compute, and why."""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in text
    return ("out_of_memory" if memory else "device_error"), text


def free_device_bytes(device: str) -> int:
    """Of the machine for "cpu"; for "cuda" what the GPU has free and what torch keeps without using
    it."""
    if device == "cpu":
        return free_memory_bytes()
    free, _ = torch.cuda.mem_get_info()
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(free + kept)
