"""Routed experts of one layer on one rank, by the dtype of their weights.

Floor: max(6 t k / ep h w / peak, (touched experts 3 h w b + traffic of routed tokens) / bandwidth)
+ a launch; t tokens of the whole group, k experts a token, `ep` ranks that share the experts, w the
width that tensor parallelism leaves. Touched experts are those of even routing; what skew does to
them, and to the fullest rank, is in the surface (`skew` 0: even, 1: popularity by rank^-1.01, 2: by
rank^-1.2).
"""

from __future__ import annotations

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.experts import touched_experts
from batchgen.cost.operators.base import Operator, element_bytes, peak_flops
from batchgen.cost.operators.points import Columns
from batchgen.cost.surface import Axis, knots
from batchgen.hardware import GpuSpec

LAUNCH_S = 20e-6
_STATE_BYTES = 2


def floor_s(gpu: GpuSpec, variant: str, columns: Columns) -> FloatArray:
    tokens, top_k = columns["tokens"], columns["top_k"]
    hidden, width = columns["hidden"], columns["width"] / columns["tp"]
    experts, ep = columns["experts"], columns["ep"]
    routed = tokens * top_k / ep
    touched = touched_experts(tokens, experts, top_k) / ep
    moved = touched * 3 * hidden * width * element_bytes(variant)
    moved += routed * (2 * hidden + 3 * width) * _STATE_BYTES + tokens * hidden * 2 * _STATE_BYTES
    compute = 6 * routed * hidden * width / peak_flops(gpu, variant)
    return np.asarray(np.maximum(compute, moved / gpu.hbm_bytes_per_s) + LAUNCH_S)


def logs(columns: Columns) -> Columns:
    experts, width = columns["experts"], columns["width"] / columns["tp"]
    # Kernels work in blocks of so many rows and columns of a matrix: others are filled up.
    uneven = (np.mod(width, 128) != 0) | (np.mod(columns["hidden"], 256) != 0)
    return {
        "tokens": np.log2(columns["tokens"]),
        "per_expert": np.log2(columns["tokens"] * columns["top_k"] / experts),
        "local": np.log2(experts / columns["ep"]),
        "width": np.log2(width),
        "uneven": uneven.astype(np.float64),
        "hidden": np.log2(columns["hidden"]),
        "ep": np.log2(columns["ep"]),
        "skew": columns["skew"],
    }


_PER_EXPERT = Axis(column="per_expert", knots=knots(-9, 14), smooth=0.1)
_SKEW = Axis(column="skew", knots=(0.0, 1.0, 2.0), smooth=0.05)
_LOCAL = Axis(column="local", knots=knots(0, 10))
_WIDTH = Axis(column="width", knots=knots(4, 14))
_HIDDEN = Axis(column="hidden", knots=knots(10, 13, 0.75))
_EP = Axis(column="ep", knots=knots(0, 8))
_UNEVEN = Axis(column="uneven", knots=(0.0, 1.0), smooth=0.0)
_TOKENS = Axis(column="tokens", knots=knots(0, 14))

EXPERTS = Operator(
    name="experts",
    columns=("tokens", "hidden", "width", "top_k", "experts", "tp", "ep", "skew"),
    shape=("hidden", "width", "top_k", "experts", "tp", "ep"),
    model=("hidden", "width", "top_k", "experts"),
    floor_s=floor_s,
    logs=logs,
    terms=(
        (_PER_EXPERT, _LOCAL, _SKEW),
        (_PER_EXPERT, _WIDTH, _HIDDEN),
        (_PER_EXPERT, _EP, _SKEW),
        (_TOKENS, _WIDTH, _LOCAL),
        (_PER_EXPERT, _UNEVEN),
    ),
)
