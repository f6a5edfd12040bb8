"""Measures the factors of `batchgen.cost.operators.offsets` on a folder of operator profiles."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.engine_tables import EngineTables, profiled, read_engine_tables
from batchgen.cost.experts import touched_experts
from batchgen.cost.operators.kernels import Kernels
from batchgen.cost.operators.offsets import binned, size_of
from batchgen.cost.operators.points import Columns
from batchgen.hardware import load_gpu
from batchgen.model import ModelSpec, load_model

Triple = tuple[FloatArray, FloatArray, FloatArray]
"""Sizes, measured seconds, foretold seconds."""
PREFILL_LONG = (2048, 4096, 8192)
"""Tokens before a prompt piece that tell of attention of longer prompts."""


def factors(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """{gpu: {operator: {log2 of a size: factor}}} of all tables of a folder."""
    times: dict[tuple[str, str], list[Triple]] = {}
    for gpu, model, tp in profiled(folder):
        tables = read_engine_tables(folder, load_model(model), load_gpu(gpu), tp)
        kernels = Kernels(load_gpu(gpu), offsets={})
        for operator, triple in _times(tables, kernels, load_model(model)):
            times.setdefault((gpu, operator), []).append(triple)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (gpu, operator), triples in sorted(times.items()):
        columns = (np.concatenate(column) for column in zip(*triples, strict=True))
        found.setdefault(gpu, {})[operator] = binned(*columns)
    return found


def _times(
    tables: EngineTables, kernels: Kernels, model: ModelSpec
) -> Iterable[tuple[str, Triple]]:
    """(operator, its times), one of each."""
    yield ("gemm", _products(tables, kernels, model))
    yield ("decode_attention", _decodes(tables, kernels, model))
    yield ("prefill_attention", _prompts(tables, kernels, model))
    if tables.experts is not None and tables.tp == 1:  # one table, of one GPU
        yield ("experts", _experts(tables, kernels, model))


def _products(tables: EngineTables, kernels: Kernels, model: ModelSpec) -> Triple:
    """The products of a layer together: what a pass sums."""
    tp, hidden = tables.tp, model.hidden
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    shapes = {"qkv_proj": ((q + 2 * kv) / tp, hidden), "o_proj": (hidden, q / tp)}
    if model.dense_layers:
        shapes |= {
            "gate_up_proj": (2 * model.ffn / tp, hidden),
            "down_proj": (hidden, model.ffn / tp),
        }
    tokens = np.exp2(np.arange(12, dtype=np.float64))
    measured = sum((tables.layers[name].at(tokens) for name in shapes), np.zeros(tokens.size))
    foretold = sum(
        (kernels.gemm(tokens, n, k, model.weight_dtype) for n, k in shapes.values()),
        np.zeros(tokens.size),
    )
    return tokens, measured * 1e-6, foretold


def _heads(tables: EngineTables, model: ModelSpec) -> dict[str, Any]:
    return {
        "heads": float(-(-model.num_heads // tables.tp)),
        "kv_heads": float(-(-model.num_kv_heads // tables.tp)),
        "head_dim": float(model.head_dim),
        "window": 0.0,
    }


def _decodes(tables: EngineTables, kernels: Kernels, model: ModelSpec) -> Triple:
    rows, context = (
        axis.ravel()
        for axis in np.meshgrid(2.0 ** np.arange(0, 9), 2.0 ** np.arange(7, 15), indexing="ij")
    )
    none = np.zeros_like(rows)
    measured = tables.attention.grid.time(none, none, rows, context)
    heads = _heads(tables, model)
    columns = {"rows": rows, "tokens": context, **heads}
    foretold = kernels.seconds("decode_attention", model.kv_dtype, **columns)
    sizes: Columns = {name: np.broadcast_to(value, rows.shape) for name, value in columns.items()}
    return size_of("decode_attention", sizes), measured * 1e-6, foretold


def _prompts(tables: EngineTables, kernels: Kernels, model: ModelSpec) -> Triple:
    """Whole prompts, and by differences what longer ones take per further piece."""
    grid, heads = tables.attention.grid, _heads(tables, model)

    def foretold(tokens: FloatArray) -> FloatArray:
        return kernels.seconds(
            "prefill_attention", model.kv_dtype, rows=1.0, tokens=tokens, **heads
        )

    chunks = np.exp2(np.arange(4, 12, dtype=np.float64))
    none = np.zeros_like(chunks)
    short = grid.time(chunks, none, none, none) * 1e-6
    starts = np.array(PREFILL_LONG, dtype=np.float64)
    piece, none = np.full_like(starts, 2048.0), np.zeros_like(starts)
    further = foretold(starts + piece) - foretold(starts)
    long = grid.time(piece, starts, none, none) * 1e-6
    return (
        np.concatenate([chunks, 2 * starts]),
        np.concatenate([short, long]),
        np.concatenate([foretold(chunks), further]),
    )


def _experts(tables: EngineTables, kernels: Kernels, model: ModelSpec) -> Triple:
    grid = tables.experts
    assert grid is not None
    tokens = np.exp2(np.arange(12, dtype=np.float64))
    measured = grid.at(tokens, touched_experts(tokens, model.num_experts, model.top_k))
    foretold = kernels.seconds(
        "experts",
        model.expert_dtype,
        tokens=tokens,
        hidden=float(model.hidden),
        width=float(model.expert_ffn),
        top_k=float(model.top_k),
        experts=float(model.num_experts),
        tp=1.0,
        ep=1.0,
        skew=0.0,
    )
    return tokens, measured * 1e-6, foretold
