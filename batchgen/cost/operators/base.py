"""What a kind of kernel says of itself. Knows no points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.points import Columns
from batchgen.cost.surface import Term
from batchgen.hardware import GpuSpec
from batchgen.model import DTYPE_BYTES

# Dtypes of tables that the catalog of models does not have: bytes per element, and what computes.
_OWN_BYTES = {"fp8_block": DTYPE_BYTES["fp8"], "mxfp4_mxfp8": DTYPE_BYTES["mxfp4"]}
_COMPUTED_AS = {"fp8_block": "fp8", "mxfp4_mxfp8": "mxfp4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """`floor_s(gpu, variant, columns)` is the least time that peaks allow, plus a launch; what is
    measured over it, as a logarithm, is a surface of `terms` over `logs(columns)`.

    `columns` name what a point has; those of `shape` are a model's, the others the batch's.
    `model`: the part of a shape that parallelism does not change, where that is less.
    """

    name: str
    columns: tuple[str, ...]
    shape: tuple[str, ...]
    floor_s: Callable[[GpuSpec, str, Columns], FloatArray]
    logs: Callable[[Columns], Columns]
    terms: tuple[Term, ...]
    model: tuple[str, ...] = ()


def element_bytes(variant: str) -> float:
    """Bytes of an element, with its scales."""
    return _OWN_BYTES[variant] if variant in _OWN_BYTES else DTYPE_BYTES[variant]


def peak_flops(gpu: GpuSpec, variant: str) -> float:
    """Peak FLOP/s of products with such weights."""
    return gpu.peak_for(_COMPUTED_AS.get(variant, variant))
