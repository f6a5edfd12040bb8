"""What this device can do at most, measured in a moment: a matrix product and a copy.

Not a benchmark: the best of few short runs with the threads of the process, so that a report can
say which part of the machine a run has used, and whether the machine is the one it was before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

ROWS, WIDTH = 1024, 1024  # of a product with square weights: large enough for full speed
COPY_BYTES = 64 << 20  # beyond a cache of the processor's
REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """FLOP/s of a matrix product in the dtype of the run; bytes/s that a copy reads and writes."""

    matmul_flops: float
    memory_bytes_s: float


def measure_ceilings(dtype: torch.dtype, device: str = "cpu") -> Ceilings:
    """About a tenth of a second."""
    place = torch.device(device)
    x = torch.ones(ROWS, WIDTH, dtype=dtype, device=place)
    weight = torch.ones(WIDTH, WIDTH, dtype=dtype, device=place)
    source = torch.ones(COPY_BYTES // dtype.itemsize, dtype=dtype, device=place)
    target = torch.empty_like(source)
    product_s = _best_s(lambda: functional.linear(x, weight), place)
    copy_s = _best_s(lambda: target.copy_(source), place)
    flops = 2 * ROWS * WIDTH**2 / product_s
    return Ceilings(matmul_flops=flops, memory_bytes_s=2 * COPY_BYTES / copy_s)


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(REPEATS + 1):  # the first one warms up, and is never the best
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best
