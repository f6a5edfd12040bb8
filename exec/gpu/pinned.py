"""Host memory that a GPU copies from and to by itself, of exactly the size that is asked for.

torch's own pinned allocator rounds every block up to a power of two, which for an arena of KV pages
may be nearly twice the memory. Here the memory is an anonymous mapping that is registered with the
driver.
"""

from __future__ import annotations

import math
import mmap
import weakref

import numpy as np
import torch

from batchgen.exec.system_pages import ask_huge_pages


def pinned_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in memory that stays registered while the tensor's storage lives.

    Raises RuntimeError where the system or the driver refuses.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    try:
        mapping = mmap.mmap(-1, size)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"no memory for {size} bytes: {error}") from None
    array = np.frombuffer(mapping, dtype=np.uint8)
    address = array.ctypes.data
    ask_huge_pages(address, size)
    driver = torch.cuda.cudart()
    failure = int(driver.cudaHostRegister(address, size, 0))
    if failure:
        raise RuntimeError(f"cannot pin {size} bytes of host memory (CUDA error {failure})")
    # The tensor keeps the array alive; when the last view goes, the driver lets go first.
    weakref.finalize(array, _release, address)
    return torch.from_numpy(array).view(dtype).view(shape)


def _release(address: int) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.cudart().cudaHostUnregister(address)
