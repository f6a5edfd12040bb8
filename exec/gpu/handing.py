"""What the host hands to a device without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch


def handed(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of the array on the device, in the current queue; the array may change at once."""
    host = torch.from_numpy(array.copy())
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
