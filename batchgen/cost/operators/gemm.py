"""Products [m, k] x [k, n] of linear layers, by the dtype of the weights.

Floor: max(2 m n k / peak, (n k b + m k b + 2 m n) / bandwidth) + a launch, where b are the bytes
of a weight. How full tiles and waves are is in the surface: its knots are the sizes that were
measured, which are close together where tiles of 64 to 256 rows fill.
"""

from __future__ import annotations

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.base import Operator, element_bytes, peak_flops
from batchgen.cost.operators.points import Columns
from batchgen.cost.surface import Axis, knots
from batchgen.hardware import GpuSpec

LAUNCH_S = 2e-6
_SIZES = (
    *(32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168),
    *(8192, 10240, 12288, 16384, 51200, 65536),
)
_WIDTHS = tuple(np.log2(_SIZES).tolist())
_TOKENS = (*knots(0, 6), *knots(6.5, 11.5, 0.5), 12.0, 13.0, 14.0, 15.0)


def floor_s(gpu: GpuSpec, variant: str, columns: Columns) -> FloatArray:
    m, n, k = columns["m"], columns["n"], columns["k"]
    size = element_bytes(variant)
    moved = (n * k + m * k) * size + m * n * 2
    compute = 2 * m * n * k / peak_flops(gpu, variant)
    return np.asarray(np.maximum(compute, moved / gpu.hbm_bytes_per_s) + LAUNCH_S)


def logs(columns: Columns) -> Columns:
    return {name: np.log2(columns[name]) for name in ("m", "n", "k")}


GEMM = Operator(
    name="gemm",
    columns=("m", "n", "k"),
    shape=("n", "k"),
    floor_s=floor_s,
    logs=logs,
    terms=(
        (
            Axis(column="m", knots=_TOKENS),
            Axis(column="n", knots=_WIDTHS),
            Axis(column="k", knots=_WIDTHS),
        ),
    ),
)
