"""What all kernels share: the interpreter, configurations, and the forms of `work` and `AHEAD`."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

# Kernels are interpreted on the CPU where TRITON_INTERPRET=1 was set before they were imported.
# The interpreter multiplies bfloat16 wrongly, so a kernel widens operands of dots where this is
# true (a constexpr of the kernel).
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, slots=True)
class Work:
    """What a launch has to do at least: FLOPs, and bytes of device memory read and written."""

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadCase:
    """One compilation of `kernel` for a GPU that is not there.

    `signature` gives the Triton type of every parameter by name, "constexpr" for those in
    `constants`. `tensor_cores`: its products must use wgmma on sm_90.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    tensor_cores: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def config(kernel: str, bucket: str, default: Mapping[str, int]) -> dict[str, int]:
    """Tile sizes, warps and stages of a kernel for a bucket of shapes on this GPU: measured ones
    from `configs`, else `default`."""
    return {**default, **_measured().get(kernel, {}).get(bucket, {})}


@functools.cache
def _measured() -> dict[str, dict[str, dict[str, int]]]:
    """Configurations of the GPU of this process; none without one."""
    if INTERPRETED or not torch.cuda.is_available():
        return {}
    name = torch.cuda.get_device_name().replace(" ", "-").lower()
    for path in sorted(CONFIGS.glob("*.json")):
        if name.startswith(path.stem):
            found: dict[str, dict[str, dict[str, int]]] = json.loads(path.read_text())["kernels"]
            return found
    return {}


def num_multiprocessors(device: torch.device) -> int:
    """Of the GPU; 4 where kernels are interpreted, so that they take the same paths."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
