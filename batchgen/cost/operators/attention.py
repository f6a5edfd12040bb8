"""Attention of decodes and of prompts with grouped heads, by the dtype of KV.

Floors: decodes max(4 rows heads dim seen / peak, rows seen 2 kv_heads dim b / bandwidth) + a
launch, prompts max(4 heads dim pairs / peak, bytes of q, k, v and output / bandwidth) + a launch. A
window bounds what a token sees; pairs are those of the causal half, of all rows.
"""

from __future__ import annotations

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.operators.base import Operator, element_bytes
from batchgen.cost.operators.points import Columns
from batchgen.cost.surface import Axis, knots
from batchgen.hardware import GpuSpec

LAUNCH_S = 4e-6
_NO_WINDOW = float(1 << 17)  # wider than any context that was measured
_STATE_BYTES = 2  # queries and outputs are bf16
_DIMS = tuple(np.log2((64.0, 128.0, 192.0, 256.0, 512.0)).tolist())
_COLUMNS = ("rows", "tokens", "heads", "kv_heads", "head_dim", "window")
_SHAPE = ("heads", "kv_heads", "head_dim")


def _seen(columns: Columns) -> FloatArray:
    """Tokens that the last of `tokens` sees: all, or those of the window (0: none)."""
    window, tokens = columns["window"], columns["tokens"]
    return np.asarray(np.where(window > 0, np.minimum(window, tokens), tokens))


def decode_floor_s(gpu: GpuSpec, variant: str, columns: Columns) -> FloatArray:
    rows, heads, dim = columns["rows"], columns["heads"], columns["head_dim"]
    read = rows * _seen(columns)
    flops = 4 * read * heads * dim
    moved = read * 2 * columns["kv_heads"] * dim * element_bytes(variant)
    moved += rows * heads * dim * 2 * _STATE_BYTES
    bound = np.maximum(flops / gpu.peak_for("bf16"), moved / gpu.hbm_bytes_per_s)
    return np.asarray(bound + LAUNCH_S)


def prefill_floor_s(gpu: GpuSpec, variant: str, columns: Columns) -> FloatArray:
    rows, heads, dim = columns["rows"], columns["heads"], columns["head_dim"]
    tokens, seen = columns["tokens"], _seen(columns)
    pairs = rows * (tokens * seen - seen * (seen - 1) / 2)
    moved = rows * tokens * dim * 2 * (heads + columns["kv_heads"]) * _STATE_BYTES
    bound = np.maximum(4 * pairs * heads * dim / gpu.peak_for("bf16"), moved / gpu.hbm_bytes_per_s)
    return np.asarray(bound + LAUNCH_S)


def decode_logs(columns: Columns) -> Columns:
    return _logs(columns, _seen(columns))


def prefill_logs(columns: Columns) -> Columns:
    window = np.where(columns["window"] > 0, columns["window"], _NO_WINDOW)
    return _logs(columns, columns["tokens"]) | {"window": np.log2(window)}


def _logs(columns: Columns, tokens: FloatArray) -> Columns:
    return {
        "rows": np.log2(columns["rows"]),
        "tokens": np.log2(tokens),
        "group": np.log2(columns["heads"] / columns["kv_heads"]),
        "kv_heads": np.log2(columns["kv_heads"]),
        "dim": np.log2(columns["head_dim"]),
        # Work items of a kernel: what decides how many processors are busy.
        "items": np.log2(columns["rows"] * columns["kv_heads"]),
    }


_GROUP = Axis(column="group", knots=knots(0, 6))
_KV_HEADS = Axis(column="kv_heads", knots=knots(0, 6))
_DIM = Axis(column="dim", knots=_DIMS, smooth=0.1)
_DECODE_ROWS = Axis(column="rows", knots=knots(0, 11))
_DECODE_TOKENS = Axis(column="tokens", knots=knots(0, 17))
_PREFILL_ROWS = Axis(column="rows", knots=knots(0, 8))
_PREFILL_TOKENS = Axis(column="tokens", knots=knots(0, 14))
_WINDOW = Axis(column="window", knots=(7.0, 10.0, 13.0, 17.0), smooth=0.02)

DECODE = Operator(
    name="decode_attention",
    columns=_COLUMNS,
    shape=_SHAPE,
    floor_s=decode_floor_s,
    logs=decode_logs,
    terms=(
        (_DECODE_ROWS, _DECODE_TOKENS, _KV_HEADS, _GROUP),
        (_DECODE_ROWS, _DECODE_TOKENS, _DIM, _KV_HEADS),
    ),
)
PREFILL = Operator(
    name="prefill_attention",
    columns=_COLUMNS,
    shape=_SHAPE,
    floor_s=prefill_floor_s,
    logs=prefill_logs,
    terms=(
        (_PREFILL_ROWS, _PREFILL_TOKENS, _KV_HEADS, _GROUP),
        (_PREFILL_ROWS, _PREFILL_TOKENS, _DIM, _WINDOW),
        (_PREFILL_TOKENS, _DIM, _GROUP, _WINDOW),
    ),
)
