"""Quantised weights as floats: FP8 and MXFP4, both in blocks. Works on tensors without data too."""

from __future__ import annotations

import torch


def from_fp8_blocks(
    weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]
) -> torch.Tensor:
    """weight [R, C] in float8, times the scale of each block of `block` rows and columns, float32.

    `scales` [R / block rows, C / block columns], both rounded up.
    """
    rows, columns = weight.shape
    wide = scales.float().repeat_interleave(block[0], 0)[:rows]
    return weight.float() * wide.repeat_interleave(block[1], 1)[:, :columns]


MXFP4_BLOCK = 32  # elements that share a scale
# Floats of one sign bit, two of exponent and one of mantissa, by their four bits.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_VALUES = _FP4 + tuple(-value for value in _FP4)
_SCALE_BIAS = 127


def from_mxfp4(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks [..., B, MXFP4_BLOCK / 2] of two values a byte, the lower four bits first, times two
    to the power of their scale [..., B] less 127: float32 [..., B * MXFP4_BLOCK]."""
    values = torch.tensor(FP4_VALUES, device=packed.device)
    pairs = torch.stack((packed & 15, packed >> 4), -1).long()
    wide = values[pairs].flatten(-2)
    return torch.ldexp(wide, (scales.int() - _SCALE_BIAS)[..., None]).flatten(-2)
