"""What all kernels share: the interpreter, configurations, and the forms of `work` and `AHEAD`."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

# Kernels are interpreted on the CPU where TRITON_INTERPRET=1 was set before they were imported.
# The interpreter multiplies bfloat16 wrongly, so a kernel widens operands of dots where this is
# true (a constexpr of the kernel).
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
CONFIGS = Path(__file__).parent / "configs"

Capability = tuple[int, int]
"""CUDA's compute capability of a GPU, major and minor."""

HOPPER: Capability = (9, 0)
AHEAD_CAPABILITIES = (80, 90, 100)  # those that kernels are compiled for without a GPU


@dataclass(frozen=True, slots=True)
class Work:
    """What a launch has to do at least: FLOPs, and bytes of device memory read and written."""

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadCase:
    """One compilation of `kernel` for a GPU that is not there.

    `signature` gives the Triton type of every parameter by name, "constexpr" for those in
    `constants`, "i32:16" for a number that is a multiple of 16 at every launch. `tensor_cores`: its
    products must use wgmma on sm_90. `capabilities`: the GPUs that it is launched on.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    tensor_cores: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    capabilities: tuple[int, ...] = AHEAD_CAPABILITIES


def cases_by_capability(make: Callable[[Capability], AheadCase]) -> tuple[AheadCase, ...]:
    """What `make` says is launched on each GPU: a case for every choice of tiles."""
    found: list[AheadCase] = []
    for number in AHEAD_CAPABILITIES:
        case = replace(make(divmod(number, 10)), capabilities=(number,))
        for at, other in enumerate(found):
            if replace(other, capabilities=case.capabilities) == case:
                found[at] = replace(case, capabilities=(*other.capabilities, number))
                break
        else:
            found.append(case)
    return tuple(found)


def config(kernel: str, bucket: str, default: Mapping[str, int]) -> dict[str, int]:
    """Tile sizes, warps and stages of a kernel for a bucket of shapes on this GPU: measured ones
    from `configs`, else `default`; changed by what a tuner tries just now."""
    own = {**default, **_shipped().get(kernel, {}).get(bucket, {})}
    for asked in _observers:
        asked[kernel, bucket] = own
    return {**own, **_tried.get(kernel, {})}


@contextmanager
def tried(kernel: str, change: Mapping[str, int]) -> Iterator[None]:
    """While a tuner measures: `config` changes what it gives to this kernel."""
    _tried[kernel] = change
    try:
        yield
    finally:
        del _tried[kernel]


@contextmanager
def observed() -> Iterator[dict[tuple[str, str], dict[str, int]]]:
    """What kernels ask `config` for meanwhile: values by kernel and bucket."""
    asked: dict[tuple[str, str], dict[str, int]] = {}
    _observers.append(asked)
    try:
        yield asked
    finally:
        _observers.remove(asked)


_tried: dict[str, Mapping[str, int]] = {}
_observers: list[dict[tuple[str, str], dict[str, int]]] = []

Configs = dict[str, dict[str, dict[str, int]]]
"""By kernel and bucket."""


def configs_for(device_name: str, triton_version: str, folder: Path = CONFIGS) -> Configs:
    """Those of the file whose name begins the device's; none of another Triton, whose compiler may
    need other tiles. The longest name wins: "nvidia-h100-pcie" before "nvidia-h100"."""
    name = slug(device_name)
    files = [path for path in folder.glob("*.json") if name.startswith(path.stem)]
    if not files:
        return {}
    document = json.loads(max(files, key=lambda path: len(path.stem)).read_text(encoding="utf-8"))
    found: Configs = document["kernels"] if document["triton"] == triton_version else {}
    return found


def slug(device_name: str) -> str:
    """What names of files begin with: "NVIDIA H200" is nvidia-h200."""
    return device_name.replace(" ", "-").lower()


@functools.cache
def _shipped() -> Configs:
    """Configurations of the GPU of this process; none without one."""
    if INTERPRETED or not torch.cuda.is_available():
        return {}
    import triton

    return configs_for(torch.cuda.get_device_name(), triton.__version__)


def num_multiprocessors(device: torch.device) -> int:
    """Of the GPU; 4 where kernels are interpreted, so that they take the same paths."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def capability(device: torch.device) -> Capability:
    """Of the GPU; Hopper's where kernels are interpreted, so that they have its tiles."""
    if device.type != "cuda":
        return HOPPER
    return torch.cuda.get_device_capability(device)
