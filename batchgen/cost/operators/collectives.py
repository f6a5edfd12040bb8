"""Collectives of the GPUs of one node, by what they do (`variant`): all_reduce, all_gather, ...

Floor: what one GPU sends, over its link, and a launch. Of a whole tensor of V bytes on n GPUs that
is 2 V (n-1)/n for an all-reduce, V (n-1)/n for the others (published tables count the elements of
the whole tensor, in halves here). How links fill with larger messages is in the surface.
"""

from __future__ import annotations

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.base import Operator
from batchgen.cost.operators.points import Columns
from batchgen.cost.surface import Axis, knots
from batchgen.hardware import GpuSpec

LAUNCH_S = 4e-6


def floor_s(gpu: GpuSpec, variant: str, columns: Columns) -> FloatArray:
    gpus, rounds = columns["gpus"], 2 if variant == "all_reduce" else 1
    sent = rounds * columns["bytes"] * (gpus - 1) / gpus
    return np.asarray(sent / gpu.intra_bytes_per_s + LAUNCH_S)


def logs(columns: Columns) -> Columns:
    return {name: np.log2(columns[name]) for name in ("bytes", "gpus")}


COLLECTIVES = Operator(
    name="collectives",
    columns=("gpus", "bytes"),
    shape=("gpus", "bytes"),
    floor_s=floor_s,
    logs=logs,
    terms=(
        (
            Axis(column="bytes", knots=knots(8, 31), smooth=0.05),
            Axis(column="gpus", knots=(1.0, 2.0, 3.0), smooth=0.05),
        ),
    ),
)
