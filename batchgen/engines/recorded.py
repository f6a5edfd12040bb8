"""Reads recorded runs of vLLM: settings, requests with their times, curves. Simulates nothing.

    DATA/HARDWARE__MODEL/{meta.json, requests.jsonl[.gz], timeseries.csv}
    DATA/*.hash16.jsonl.gz     workloads with the prefix blocks of the prompts
    DATA/op_profiles/          operator profiles of the same machines

`arrival_time` is wall clock, all other stamps count from another zero. A request is queued when the
engine reads it, which it does between steps, so nothing is queued before it arrives: the smallest
difference of the two is the difference of the clocks.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.errors import DataError, UserError
from batchgen.hardware import load_gpu
from batchgen.model import load_model
from batchgen.paths import kind_of
from batchgen.trace.formats.registry import import_trace
from batchgen.trace.formats.vllm_run import requests_file
from batchgen.trace.lines import read_lines
from batchgen.trace.table import Trace

META, CURVES, WORKLOADS = "meta.json", "timeseries.csv", "*.hash16.jsonl*"
SIXTEEN_BITS = (None, "auto", "bfloat16", "float16", "half")
STAMPS = ("queued_ts", "first_token_ts", "last_token_ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an engine was started with."""

    model: str
    gpu: str
    tp: int
    dp: int
    expert_parallel: bool
    max_num_seqs: int
    token_budget: int
    memory_fraction: float
    prefix_cache: bool

    @property
    def gpus(self) -> int:
        return self.tp * self.dp

    @property
    def layout(self) -> str:
        """Data-parallel ranks of a mixture of experts step together, others are engines."""
        parts = [f"tp{self.tp}"]
        if self.dp > 1:
            together = load_model(self.model).is_moe
            parts.append(f"dpa{self.dp}" if together else f"dp{self.dp}")
        if self.expert_parallel and load_model(self.model).is_moe:
            parts.append(f"ep{self.gpus}")
        return "+".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One run. Arrays per request, seconds after the first arrival; curves per sample."""

    name: str
    settings: Settings
    trace: Trace
    workload: str
    arrival_s: FloatArray
    first_s: FloatArray
    last_s: FloatArray
    curve_s: FloatArray
    running: FloatArray
    waiting: FloatArray

    def measured(self) -> dict[str, float]:
        """The metrics of `batchgen.report.metrics` that such a log tells, by the same names."""
        output = self.trace.output_tokens
        makespan = float(self.last_s.max() - self.arrival_s.min())
        several = output > 1
        between = (self.last_s - self.first_s)[several] / (output[several] - 1)
        return {
            "bct_s": makespan,
            "output_tokens_per_s": float(output.sum()) / makespan,
            "mean_latency_s": float((self.last_s - self.arrival_s).mean()),
            "mean_tpot_s": float(between.mean()),
            "mean_ttft_s": float((self.first_s - self.arrival_s).mean()),
        }


def find_recorded(data: Path) -> list[Recorded]:
    """The runs of a folder, by name. Raises UserError where there is none."""
    if kind_of(data) != "folder":
        raise UserError(f"--data {data} is no folder", remedy="give a folder of recorded runs")
    folders = sorted(path.parent for path in data.glob(f"*/{META}"))
    if not folders:
        raise UserError(f"--data {data}: no folder in it has a {META}", remedy="check --data")
    workloads = sorted(data.glob(WORKLOADS))
    return [read_recorded(folder, workloads) for folder in folders]


def read_recorded(folder: Path, workloads: list[Path]) -> Recorded:
    """One run; its prefixes are those of the workload whose lengths are the log's. Raises DataError
    for a bad file."""
    settings, started_s = _settings(folder)
    log = requests_file(folder)
    stamps = _stamps(log)
    trace, workload = _trace(log, workloads)
    if len(trace) != len(stamps):
        raise DataError(f"{len(trace)} of {len(stamps)} requests are usable", path=str(log))
    arrival, queued, first, last = stamps.T
    begin = float(arrival.min())
    shift = float((queued - (arrival - begin)).min())
    times, running, waiting = _curves(folder / CURVES)
    return Recorded(
        name=folder.name,
        settings=settings,
        trace=trace,
        workload=workload,
        arrival_s=arrival - begin,
        first_s=first - shift,
        last_s=last - shift,
        curve_s=times + started_s - begin,
        running=running,
        waiting=waiting,
    )


def _settings(folder: Path) -> tuple[Settings, float]:
    """The settings, and when the recording began (seconds since 1970)."""
    path = folder / META
    try:
        meta = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        given = meta["engine_kwargs"]
        started_s = datetime.fromisoformat(meta["started_at"]).timestamp()
        for name in ("dtype", "kv_cache_dtype"):
            if given.get(name) not in SIXTEEN_BITS:
                raise ValueError(f"{name} is {given[name]!r}, only 16 bits are simulated")
        hardware = folder.name.partition("__")[0]
        settings = Settings(
            model=load_model(_known_model(str(given["model"]))).name,
            gpu=load_gpu(hardware).name,
            tp=_size(given, "tensor_parallel_size", 1),
            dp=_size(given, "data_parallel_size", 1),
            expert_parallel=bool(given.get("enable_expert_parallel", False)),
            max_num_seqs=_size(given, "max_num_seqs", None),
            token_budget=_size(given, "max_num_batched_tokens", None),
            memory_fraction=float(given.get("gpu_memory_utilization") or 0.9),
            prefix_cache=given.get("enable_prefix_caching") is not False,
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", path=str(path)) from None
    except KeyError as error:
        raise DataError("missing", path=str(path), field=str(error.args[0])) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not the settings of an engine ({error})", path=str(path)) from None
    return settings, started_s


def _known_model(name: str) -> str:
    """A release of a model of the catalog ("-Instruct-2507") has its sizes."""
    base = name.rsplit("/", 1)[-1]
    while True:
        try:
            load_model(base)
        except UserError:
            if "-" not in base:
                return name  # the error names it whole
            base = base.rpartition("-")[0]
            continue
        return base


def _size(given: dict[str, Any], name: str, absent: int | None) -> int:
    value = given.get(name, absent)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}")
    return value


def _stamps(log: Path) -> FloatArray:
    """[requests, 4]: arrival by its own clock, then the three of `STAMPS`."""
    found: list[list[float]] = []
    for number, line in read_lines(log):
        if isinstance(line, DataError):
            raise line
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(str(error).replace("`", ""), path=str(log), line=number) from None
        row = []
        for field in ("arrival_time", *STAMPS):
            value = record.get(field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError("expected seconds", path=str(log), line=number, field=field)
            if not abs(value) < 1e12:
                raise DataError(f"{value} seconds", path=str(log), line=number, field=field)
            row.append(float(value))
        for field, before, after in zip(STAMPS[1:], row[1:], row[2:], strict=False):
            if after < before:
                raise DataError("before its predecessor", path=str(log), line=number, field=field)
        found.append(row)
    if not found:
        raise DataError("no requests", path=str(log))
    return np.array(found)


def _trace(log: Path, workloads: list[Path]) -> tuple[Trace, str]:
    """The load, with the prefixes of the first workload that has its lengths."""
    for workload in workloads:
        try:
            return import_trace(log, prefixes=workload), workload.name
        except DataError as error:
            if str(workload) not in str(error):
                raise  # the log itself is bad
    return import_trace(log), ""


def _curves(path: Path) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(seconds, running, waiting); empty where nothing was recorded."""
    if not path.is_file():
        none = np.zeros(0)
        return none, none, none
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows.extend(
                [float(record[name]) for name in ("t", "running", "waiting")]
                for record in csv.DictReader(file)
            )
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", path=str(path), line=len(rows) + 2) from None
    columns = np.array(rows).reshape(-1, 3).T
    return columns[0], columns[1], columns[2]
