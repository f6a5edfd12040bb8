"""Tiles of `prefill_attention` by shape and GPU; launches nothing.

Hopper's were measured on an H200 at heads of 128. Others are held to what compiles without spilling
(`ahead`) and have run on no GPU. What a generation cannot keep in registers:

- Ampere (and all that multiply by `mma.sync`): queries and keys of a product are in registers too,
  so that tiles of more than 64 columns are of 32 keys; sums of 256 columns leave room for 64 rows.
- Hopper: products read both from shared memory; 128 rows of 256 columns fit.
- Blackwell: sums are in memory of their own, but they fade in registers: 256 columns, 64 rows.
"""

from __future__ import annotations

from batchgen.exec.kernels.launching import Capability, config


def prefill_tiles(
    group: int,
    head_dim: int,
    value_dim: int,
    page: int,
    itemsize: int,
    max_length: int,
    gpu: Capability,
) -> dict[str, int]:
    """BLOCK_M and TILE, warps and stages; few rows take half a block."""
    small = max_length * group <= 64
    if itemsize > 2:
        rows = 16 if value_dim > 64 else 32
        default = {"BLOCK_M": rows, "TILE": rows, "num_warps": 8, "num_stages": 1}
    elif value_dim > 256:
        # 64 rows would be wgmma and spill.
        default = {"BLOCK_M": 32, "TILE": 64, "num_warps": 8, "num_stages": 2}
    elif small:
        default = {"BLOCK_M": 64, "TILE": 64, "num_warps": 4, "num_stages": 3}
    else:
        default = {"BLOCK_M": 128, "TILE": 64, "num_warps": 8, "num_stages": 3}
    if itemsize == 2 and 64 < value_dim <= 256:
        default |= _fewer_registers(value_dim, gpu[0])
    bucket = f"d{head_dim}_e{value_dim}_p{page}_b{itemsize}{'_small' if small else ''}"
    return config("prefill_attention", bucket, default)


def _fewer_registers(value_dim: int, generation: int) -> dict[str, int]:
    """What differs for values of more than 64."""
    ampere = generation not in (9, 10)
    if value_dim <= 128:
        return {"TILE": 32, "num_warps": 8} if ampere else {}
    wide = {"TILE": 32, "num_warps": 8}
    if generation != 9:
        wide["BLOCK_M"] = 64
    if ampere:
        wide["num_stages"] = 2  # 68 KiB; the smaller GPUs of the generation have 99
    return wide
