"""Chooses tile sizes by measuring: the form of `TUNE`, and files of configurations.

A kernel module may hold `TUNE`, a tuple of `Tune`: one per bucket of shapes. How time is taken is
passed in, so that nothing here needs a GPU but `tune` with the real clock.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from batchgen.exec.kernels.launching import CONFIGS, Configs, Work, slug, tried
from batchgen.exec.kernels.timing import Call, median_s, num_copies

GPUS = ("nvidia-h100", "nvidia-h200")  # of which configurations are shipped
HEURISTIC = "what the kernels say themselves; no GPU has measured it"
MADE_ON = "batchgen bench tune on "
# A candidate must be so much shorter than the kernel's own numbers to replace them: what two
# measurements of one thing differ by.
MARGIN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """A bucket of shapes of one kernel.

    `kernel` and `bucket` are what the kernel gives to `launching.config`, which hands out the
    values of a candidate while it is measured. `candidates`: the kernel's own numbers first.
    `make(device, seed)` makes buffers and gives a call of the kernel on them, and its work.
    """

    kernel: str
    bucket: str
    candidates: Sequence[Mapping[str, int]]
    make: Callable[[torch.device, int], tuple[Call, Work]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Seconds by candidate (infinite where it did not run) and the one that was chosen."""

    kernel: str
    bucket: str
    seconds: tuple[float, ...]
    errors: tuple[str, ...]
    chosen: int


def find_tunes(modules: Sequence[str]) -> list[Tune]:
    """What the modules have in `TUNE`, in order."""
    return [one for name in modules for one in getattr(importlib.import_module(name), "TUNE", ())]


def defaults(tunes: Sequence[Tune]) -> Configs:
    """What the kernels use where nothing was measured."""
    found: Configs = {}
    for one in tunes:
        found.setdefault(one.kernel, {})[one.bucket] = dict(one.candidates[0])
    return found


def tune(
    tunes: Sequence[Tune],
    device: torch.device,
    time_s: Callable[[Sequence[Call]], float] = median_s,
    copies: Callable[[float, torch.device], int] = num_copies,
) -> Iterator[Tuned]:
    """Measures every candidate of every bucket; those that do not run are passed over."""
    for one in tunes:
        calls: list[Call] = []
        work = Work(0.0, 0.0)
        while not calls or len(calls) < copies(work.bytes, device):
            call, work = one.make(device, len(calls))
            calls.append(call)
        seconds, errors = [], []
        for values in one.candidates:
            try:
                with tried(one.kernel, one.bucket, values):
                    seconds.append(time_s(calls))
            except Exception as error:  # too much shared memory, tiles that do not fit: of any kind
                seconds.append(math.inf)
                errors.append(f"{dict(values)}: {type(error).__name__}: {error}"[:300])
        best = min(range(len(seconds)), key=seconds.__getitem__)
        if seconds[best] > seconds[0] * (1 - MARGIN):
            best = 0
        yield Tuned(
            kernel=one.kernel,
            bucket=one.bucket,
            seconds=tuple(seconds),
            errors=tuple(errors),
            chosen=best,
        )


def chosen(tunes: Sequence[Tune], results: Sequence[Tuned]) -> Configs:
    """The candidates that won. A bucket of which none ran is left to the kernel."""
    found: Configs = {}
    for one, result in zip(tunes, results, strict=True):
        if math.isfinite(result.seconds[result.chosen]):
            values = dict(one.candidates[result.chosen])
            found.setdefault(one.kernel, {})[one.bucket] = values
    return found


def document(kernels: Configs, triton_version: str, source: str, measured: bool) -> dict[str, Any]:
    """A file of configurations, as `launching.configs_for` reads it."""
    return {"triton": triton_version, "measured": measured, "source": source, "kernels": kernels}


def merged(path: Path, kernels: Configs, triton_version: str) -> Configs:
    """With the buckets that `path` has from an earlier measurement under this Triton."""
    if not path.exists():
        return kernels
    before = json.loads(path.read_text(encoding="utf-8"))
    if not before["measured"] or before["triton"] != triton_version:
        return kernels
    every: Configs = before["kernels"]
    return every | {name: every.get(name, {}) | buckets for name, buckets in kernels.items()}


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_defaults(folder: Path, tunes: Sequence[Tune], triton_version: str) -> list[Path]:
    """Files of the kernels' own numbers for the GPUs of `GPUS`; measured files stay."""
    written = []
    for gpu in GPUS:
        path = folder / f"{gpu}.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["measured"]:
            continue
        write(path, document(defaults(tunes), triton_version, HEURISTIC, False))
        written.append(path)
    return written


def default_path(device_name: str) -> Path:
    """The shipped file of a GPU, else one of its own name."""
    name = slug(device_name)
    known = next((gpu for gpu in GPUS if name.startswith(gpu)), name)
    return CONFIGS / f"{known}.json"
