"""Latent attention of DeepSeek-V3 as whole modules, projections and all, by dtype of the weights.

A point is what one rank does: `heads` of the model's 128, `kv_bytes` of an element of the latent.
Floors: weights of q and kv down, q up, the absorbed halves of kv up, and output, read once; for
decodes 2 (576 + 512) FLOPs per head and latent read, for prompts 2 (192 + 128) per head and pair,
with keys and values expanded from the latent; the longer of FLOPs / peak and bytes / bandwidth of
products and of attention, and launches.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.base import Operator, element_bytes, peak_flops
from batchgen.cost.operators.points import Columns
from batchgen.cost.surface import Axis, knots
from batchgen.hardware import GpuSpec

HIDDEN, Q_RANK, KV_RANK, ROPE, NOPE, VALUE = 7168, 1536, 512, 64, 128, 128
LAUNCH_S = 30e-6  # some ten kernels


def _products(gpu: GpuSpec, variant: str, tokens: FloatArray, heads: FloatArray) -> FloatArray:
    """Seconds of the projections of `tokens` tokens."""
    weights = HIDDEN * (Q_RANK + KV_RANK + ROPE) + Q_RANK * heads * (NOPE + ROPE)
    weights = weights + heads * KV_RANK * (NOPE + VALUE) + heads * VALUE * HIDDEN
    compute = 2 * tokens * weights / peak_flops(gpu, variant)
    return np.maximum(compute, weights * element_bytes(variant) / gpu.hbm_bytes_per_s)


def decode_floor_s(gpu: GpuSpec, variant: str, columns: Columns) -> FloatArray:
    rows, heads, read = columns["rows"], columns["heads"], columns["rows"] * columns["tokens"]
    flops = 2 * read * heads * (2 * KV_RANK + ROPE)
    moved = read * (KV_RANK + ROPE) * columns["kv_bytes"]
    scores = np.maximum(flops / gpu.peak_for("bf16"), moved / gpu.hbm_bytes_per_s)
    return np.asarray(_products(gpu, variant, rows, heads) + scores + LAUNCH_S)


def prefill_floor_s(gpu: GpuSpec, variant: str, columns: Columns) -> FloatArray:
    rows, heads, tokens = columns["rows"], columns["heads"], columns["tokens"]
    pairs = rows * tokens * (tokens + 1) / 2
    scores = 2 * pairs * heads * (NOPE + ROPE + VALUE) / gpu.peak_for("bf16")
    return np.asarray(_products(gpu, variant, rows * tokens, heads) + scores + LAUNCH_S)


def logs(columns: Columns) -> Columns:
    return {
        "rows": np.log2(columns["rows"]),
        "tokens": np.log2(columns["tokens"]),
        "heads": np.log2(columns["heads"]),
        "work": np.log2(columns["rows"] * columns["tokens"]),
        "kv_bytes": columns["kv_bytes"],
    }


_ROWS = Axis(column="rows", knots=knots(0, 10))
_TOKENS = Axis(column="tokens", knots=knots(0, 17))
_HEADS = Axis(column="heads", knots=knots(0, 7))
_KV = Axis(column="kv_bytes", knots=(1.0, 2.0), smooth=0.0)

MLA_DECODE = Operator(
    name="mla_decode",
    columns=("rows", "tokens", "heads", "kv_bytes"),
    shape=("heads", "rows"),
    floor_s=decode_floor_s,
    logs=logs,
    terms=((_ROWS, _TOKENS, _HEADS), (_ROWS, _TOKENS, _KV)),
)
MLA_PREFILL = replace(MLA_DECODE, name="mla_prefill", floor_s=prefill_floor_s)
