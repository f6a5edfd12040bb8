"""Reads published tables of measured kernels: a folder per GPU with aiconfigurator's Parquet files.

The tables are NVIDIA's (ai-dynamo/aiconfigurator, Apache-2.0): vLLM's kernels, latencies in ms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """So many points of a table that were not taken, and why."""

    operator: str
    gpu: str
    variant: str  # dtype or operation, as the table calls it; "" for any
    reason: str
    points: int


def read_tables(folder: Path) -> tuple[list[Points], list[Dropped]]:
    """Points of every GPU of the catalog that has a folder of its name there, and what was left out
    of its tables.

    Raises UserError if there is none, DataError for a table without the expected columns.
    """
    found: list[Points] = []
    dropped: list[Dropped] = []
    for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            gpu = load_gpu(directory.name).name
        except UserError:
            continue
        for suffix, (operator, dtype, columns_of) in _FILES.items():
            for path in sorted(directory.glob(f"*{suffix}")):
                taken, left = _Table(path, operator, gpu).read(dtype, columns_of)
                found += taken
                dropped += left
    if not found:
        raise UserError(
            f"{folder} has no tables of a GPU of the catalog",
            remedy="give the folder that holds h100_sxm, h200_sxm, ...",
        )
    return found, dropped


class _Table:
    """One file."""

    def __init__(self, path: Path, operator: str, gpu: str) -> None:
        self.path, self.operator, self.gpu = path, operator, gpu
        self.dropped: list[Dropped] = []

    def read(
        self, dtype: str, columns_of: Callable[[pd.DataFrame], Columns]
    ) -> tuple[list[Points], list[Dropped]]:
        """Points by the values of the column `dtype`, and what is not among them."""
        try:
            groups = self._groups(pd.read_parquet(self.path), dtype)
        except (OSError, ValueError, KeyError) as error:
            raise self._bad(f"is no table of {self.operator} ({error!s:.80})") from None
        taken = []
        for value, part in groups:
            known = value if self.operator == "collectives" else _DTYPES.get(value)
            reason = "" if known else "dtype without a model of ours"
            if not reason:
                reason = LEFT_OUT.get((self.operator, str(known)), "")
            if reason:
                self._drop(value, reason, len(part))
                continue
            try:
                columns = columns_of(part)
                seconds = part["latency"].to_numpy(dtype=np.float64) / 1e3
            except KeyError as error:
                raise self._bad(f"has no column {error!s:.80}") from None
            except ValueError as error:
                raise self._bad(f"holds what is no number ({error!s:.80})") from None
            points = Points(
                operator=self.operator,
                gpu=self.gpu,
                variant=str(known),
                columns=columns,
                seconds=seconds,
            )
            whole = self._whole(points, value)
            if whole.any():
                taken.append(points.take(whole))
        return taken, self.dropped

    def _groups(self, frame: pd.DataFrame, dtype: str) -> list[tuple[str, pd.DataFrame]]:
        if self.operator == "collectives":
            frame = self._only(frame, _used(frame), "another library, width or eager launches")
        if self.operator.startswith("mla"):
            other = "attention in another dtype than bf16"
            frame = self._only(frame, frame["mla_dtype"] == "bfloat16", other)
        frame = self._only(frame, frame[dtype].notna(), f"no {dtype}")
        return [(str(value), part) for value, part in frame.groupby(dtype)]

    def _only(self, frame: pd.DataFrame, which: pd.Series[bool], reason: str) -> pd.DataFrame:
        self._drop("", reason, int((~which).sum()))
        return frame[which]

    def _whole(self, points: Points, variant: str) -> NDArray[np.bool_]:
        """Where every value is a size or a time; the first that is none says why not."""
        whole = np.isfinite(points.seconds) & (points.seconds > 0)
        self._drop(variant, "latency is no positive number", int((~whole).sum()))
        for name, values in points.columns.items():
            good = np.isfinite(values) & (values >= (0 if name in ("window", "skew") else 1))
            self._drop(variant, f"{name} is unknown or out of range", int((whole & ~good).sum()))
            whole &= good
        return whole

    def _drop(self, variant: str, reason: str, points: int) -> None:
        if points:
            self.dropped.append(
                Dropped(
                    operator=self.operator,
                    gpu=self.gpu,
                    variant=variant,
                    reason=reason,
                    points=points,
                )
            )

    def _bad(self, what: str) -> DataError:
        return DataError(what, path=str(self.path))


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


def _used(frame: pd.DataFrame) -> pd.Series[bool]:
    """What engines use: vLLM's own all-reduce inside CUDA graphs, the others of NCCL; in halves."""
    if "backend" in frame:
        return frame["backend"] == "vllm_graph"
    return (frame["op_name"] != "all_reduce") & (frame["nccl_dtype"] == "half")


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
