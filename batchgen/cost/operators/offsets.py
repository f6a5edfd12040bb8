"""Kernels of GPUs that only engines' operator profiles measured: factors on the fits of others.

A profile holds the shapes of few models, too few for surfaces of its own. What it tells is how much
longer a GPU takes than fits of all other GPUs foretell from its peaks: a factor over the size that
decides how full the GPU is. A factor is the measured time of all shapes of a size over the
foretold; linear in logarithms in between, constant beyond.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.points import Columns
from batchgen.errors import DataError

SHIPPED = Path(__file__).parents[2] / "catalog" / "offsets.json"
Offsets = Mapping[tuple[str, str], tuple[FloatArray, FloatArray]]
"""By (operator, gpu): log2 of sizes, logarithms of factors."""


def size_of(operator: str, columns: Columns) -> FloatArray:
    """What an operator's factor depends on."""
    if operator == "gemm":
        return columns["m"]
    if operator == "decode_attention":
        return np.asarray(columns["rows"] * columns["tokens"] * columns["kv_heads"])
    return columns["tokens"]


def factor(offsets: Offsets, operator: str, gpu: str, columns: Columns) -> FloatArray | float:
    """1 where no profile is known."""
    known = offsets.get((operator, gpu))
    if known is None:
        return 1.0
    return np.asarray(np.exp(np.interp(np.log2(size_of(operator, columns)), *known)))


def binned(sizes: FloatArray, measured: FloatArray, foretold: FloatArray) -> dict[str, float]:
    """Factors at every whole log2 of the sizes."""
    where = np.rint(np.log2(sizes)).astype(int)
    return {
        str(number): round(
            float(measured[where == number].sum() / foretold[where == number].sum()), 3
        )
        for number in sorted(set(where.tolist()))
    }


@functools.cache
def shipped() -> Offsets:
    """The factors of this project, read once."""
    return load()


def load(path: Path = SHIPPED) -> Offsets:
    """{gpu: {operator: {log2 of a size: factor}}} as arrays. Raises DataError for another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["factors"]
        offsets = {}
        for gpu, operators in found.items():
            for operator, factors in operators.items():
                points = sorted((int(size), float(value)) for size, value in factors.items())
                sizes, values = np.array(points, dtype=np.float64).T
                if not ((values > 0.05) & (values < 20)).all():
                    raise ValueError(f"factors of {operator} on {gpu}")
                offsets[operator, gpu] = (sizes, np.log(values))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"holds no factors of kernels ({error!s:.80})", path=str(path)) from None
    return offsets
