"""Reads published tables of measured kernels: a folder per GPU with aiconfigurator's Parquet files.

The tables are NVIDIA's (ai-dynamo/aiconfigurator, Apache-2.0): vLLM's kernels, latencies in ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from batchgen.cost.operators.points import Columns, Points
from batchgen.errors import DataError, UserError
from batchgen.hardware import load_gpu

_DTYPES = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
_DTYPES |= {"int4_wo": "int4", "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "mxfp4_mxfp8"}
_SKEWS = {"balanced": 0.0, "power_law_1.01": 1.0, "power_law_1.2": 2.0}
LEFT_OUT = {
    ("experts", "fp8"): "5 to 10 times as slow as fp8_block on Hopper, which engines use",
    ("gemm", "fp8_block"): "timed outside of a graph: launches are most of it",
}


def read_tables(folder: Path) -> list[Points]:
    """Points of every GPU of the catalog that has a folder of its name there.

    Raises UserError if there is none, DataError for a table without the expected columns.
    """
    found: list[Points] = []
    for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            gpu = load_gpu(directory.name).name
        except UserError:
            continue
        for suffix, (operator, dtype, columns_of) in _FILES.items():
            for path in sorted(directory.glob(f"*{suffix}")):
                found += _read(path, operator, gpu, dtype, columns_of)
    if not found:
        raise UserError(
            f"{folder} has no tables of a GPU of the catalog",
            remedy="give the folder that holds h100_sxm, h200_sxm, ...",
        )
    return found


def _read(
    path: Path,
    operator: str,
    gpu: str,
    dtype: str,
    columns_of: Callable[[pd.DataFrame], Columns],
) -> Iterator[Points]:
    try:
        frame = pd.read_parquet(path)
        if operator == "collectives":
            frame = _used(frame)
        if operator.startswith("mla"):
            frame = frame[frame["mla_dtype"] == "bfloat16"]
        groups = list(frame.groupby(dtype))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"is no table of {operator} ({error!s:.80})", path=str(path)) from None
    for value, part in groups:
        variant = str(value) if operator == "collectives" else _DTYPES.get(str(value))
        if variant is None or (operator, variant) in LEFT_OUT:
            continue
        try:
            columns = columns_of(part)
            seconds = part["latency"].to_numpy(dtype=np.float64) / 1e3
        except KeyError as error:
            raise DataError(f"has no column {error!s:.80}", path=str(path)) from None
        except ValueError as error:
            raise DataError(f"holds what is no number ({error!s:.80})", path=str(path)) from None
        points = Points(
            operator=operator, gpu=gpu, variant=variant, columns=columns, seconds=seconds
        )
        whole = np.isfinite(seconds) & (seconds > 0)
        for name, values in columns.items():
            whole &= np.isfinite(values) & (values >= (0 if name in ("window", "skew") else 1))
        if whole.any():
            yield points.take(whole)


def _picked(frame: pd.DataFrame, **names: str) -> Columns:
    return {ours: np.asarray(frame[theirs], dtype=np.float64) for ours, theirs in names.items()}


def _gemm(frame: pd.DataFrame) -> Columns:
    return _picked(frame, m="m", n="n", k="k")


_HEADS = {
    "rows": "batch_size",
    "heads": "num_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}


def _decode(frame: pd.DataFrame) -> Columns:
    columns = _picked(frame, tokens="step", **_HEADS) | _window(frame)
    columns["tokens"] = columns["tokens"] + 1  # the step does not count the token itself
    return columns


def _prefill(frame: pd.DataFrame) -> Columns:
    return _picked(frame, tokens="isl", **_HEADS) | _window(frame)


def _window(frame: pd.DataFrame) -> Columns:
    """Older tables know no windows."""
    if "window_size" in frame:
        return _picked(frame, window="window_size")
    return {"window": np.zeros(len(frame))}


def _experts(frame: pd.DataFrame) -> Columns:
    columns = _picked(
        frame,
        tokens="num_tokens",
        hidden="hidden_size",
        width="inter_size",
        top_k="topk",
        experts="num_experts",
        tp="moe_tp_size",
        ep="moe_ep_size",
    )
    columns["skew"] = np.asarray(frame["distribution"].map(_SKEWS), dtype=np.float64)
    return columns


def _used(frame: pd.DataFrame) -> pd.DataFrame:
    """What engines use: vLLM's own all-reduce inside CUDA graphs, the others of NCCL; in halves."""
    if "backend" in frame:
        return frame[frame["backend"] == "vllm_graph"]
    return frame[(frame["op_name"] != "all_reduce") & (frame["nccl_dtype"] == "half")]


def _latent(frame: pd.DataFrame, tokens: str) -> Columns:
    columns = _picked(frame, rows="batch_size", tokens=tokens, heads="num_heads")
    columns["kv_bytes"] = np.where(frame["kv_cache_dtype"] == "fp8", 1.0, 2.0)
    return columns


def _latent_decode(frame: pd.DataFrame) -> Columns:
    return _latent(frame, "step")  # which is the context here


def _latent_prefill(frame: pd.DataFrame) -> Columns:
    return _latent(frame, "isl")


def _collectives(frame: pd.DataFrame) -> Columns:
    columns = _picked(frame, gpus="num_gpus", bytes="message_size")
    columns["bytes"] = columns["bytes"] * 2  # the tables count elements
    return columns


_FILES = {
    "mla_generation_module_perf.parquet": ("mla_decode", "gemm_type", _latent_decode),
    "mla_context_module_perf.parquet": ("mla_prefill", "gemm_type", _latent_prefill),
    "custom_allreduce_perf.parquet": ("collectives", "op_name", _collectives),
    "nccl_perf.parquet": ("collectives", "op_name", _collectives),
    "gemm_perf.parquet": ("gemm", "gemm_dtype", _gemm),
    "generation_attention_perf.parquet": ("decode_attention", "kv_cache_dtype", _decode),
    "context_attention_perf.parquet": ("prefill_attention", "kv_cache_dtype", _prefill),
    "moe_perf.parquet": ("experts", "moe_dtype", _experts),
}
