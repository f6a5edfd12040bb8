"""Tiles of the products of routed experts, by shape and rows per expert; launches nothing.

The defaults begin from published ones for E 128, k 8, H 2048, I 768 on an H200 (those that vLLM
ships for both products), with stages of our choice. The second product has few steps, so that
filling and emptying its pipeline counts: there two programs or more share a multiprocessor, and
one loads while another ends. All are to be measured; `launching.config` knows what was.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import triton

from batchgen.exec.kernels.launching import INTERPRETED, config

GREATEST_BLOCK = 128  # of any BLOCK_M
_HOPPER_SHARED_BYTES = 227 << 10
_PRODUCTS = ("UP", "DOWN")

# Rows per expert up to which a tile is used, then BLOCK_M and, for both products, columns, depth,
# warps and stages.
_TILES = (
    (0, 16, (64, 64, 4, 5), (64, 128, 4, 4)),
    (1, 16, (64, 256, 4, 3), (64, 128, 4, 4)),
    (4, 16, (256, 128, 8, 3), (128, 128, 4, 3)),
    (8, 16, (128, 128, 4, 3), (128, 128, 4, 3)),
    (16, 32, (256, 128, 8, 3), (128, 128, 4, 3)),
    (32, 64, (128, 64, 4, 4), (128, 64, 4, 4)),
    (1 << 30, 128, (256, 64, 8, 4), (256, 64, 8, 4)),
)


def _rows_per_expert(num_pairs: int, num_experts: int) -> int:
    """The bucket of a call: 0 where pairs are not sorted, else a power of two."""
    if 4 * num_pairs <= num_experts:
        return 0
    return min(triton.next_power_of_2(triton.cdiv(num_pairs, num_experts)), 1024)


def tiles_of(
    num_pairs: int, num_experts: int, hidden: int, width: int, element_size: int
) -> dict[str, int]:
    """Tiles of both products: BLOCK_M and GROUP_M, and UP_ and DOWN_ N, K, WARPS and STAGES;
    whether pairs are SORTED. The bucket of `config` is h{hidden}-i{width}-rows{rows per expert}."""
    rows = _rows_per_expert(num_pairs, num_experts)
    tiles = config("experts", f"h{hidden}-i{width}-rows{rows}", _table(rows, element_size))
    return _fitted(tiles, rows, hidden, width, element_size, _shared_bytes())


def default_tiles(
    num_pairs: int, num_experts: int, hidden: int, width: int, element_size: int
) -> dict[str, int]:
    """Those of `tiles_of` on a Hopper GPU that nobody measured. Asks no device."""
    rows = _rows_per_expert(num_pairs, num_experts)
    tiles = _table(rows, element_size)
    return _fitted(tiles, rows, hidden, width, element_size, _HOPPER_SHARED_BYTES)


def _table(rows: int, element_size: int) -> dict[str, int]:
    _, block, up, down = next(tile for tile in _TILES if rows <= tile[0])
    if element_size > 2:  # float32 has no tensor cores here: it is for tests
        block, up, down = min(block, 32), (64, 32, 4, 2), (64, 32, 4, 2)
    names = [f"{product}_{part}" for product in _PRODUCTS for part in ("N", "K", "WARPS", "STAGES")]
    group = {16: 1, 32: 1, 64: 8}.get(block, 16)
    return {"BLOCK_M": block, "GROUP_M": group, **dict(zip(names, (*up, *down), strict=True))}


def _fitted(
    tiles: Mapping[str, int],
    rows: int,
    hidden: int,
    width: int,
    element_size: int,
    shared_bytes: int,
) -> dict[str, int]:
    """Steps that divide the depth, and no more stages than shared memory holds."""
    fitted = {**tiles, "SORTED": int(rows > 0)}
    for product, depth in zip(_PRODUCTS, (hidden, width), strict=True):
        step = tiles[f"{product}_K"]
        while step > 32 and depth % step:
            step //= 2  # masks along the depth cost more than short steps
        stage_bytes = (tiles["BLOCK_M"] + tiles[f"{product}_N"]) * step * element_size
        stages = min(tiles[f"{product}_STAGES"], shared_bytes // stage_bytes)
        fitted |= {f"{product}_K": step, f"{product}_STAGES": max(stages, 1)}
    return fitted


@functools.cache
def _shared_bytes() -> int:
    """Of a program, on the GPU of this process; Hopper's without one."""
    if INTERPRETED or not torch.cuda.is_available():
        return _HOPPER_SHARED_BYTES
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(properties.shared_memory_per_block_optin)
