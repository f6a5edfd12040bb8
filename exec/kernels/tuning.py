"""Chooses tile sizes by measuring: the form of `TUNE`, and files of configurations.

A module may hold `TUNE`, a tuple of `Tune`: a call of a kernel at some shape, and what may be
changed. The bucket and the kernel's own numbers are seen when it asks `launching.config`. How time
is taken is passed in, so that nothing but the real clock needs a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from batchgen.exec.kernels.launching import CONFIGS, Configs, Work, observed, slug, tried
from batchgen.exec.kernels.timing import Call, median_s, num_copies

GPUS = ("nvidia-h100", "nvidia-h200")  # of which configurations are shipped
HEURISTIC = "none is measured: the kernels' own numbers hold"
MADE_ON = "batchgen bench tune on "
# A change must save so much to replace the kernel's own numbers: what two measurements of one
# thing differ by.
MARGIN = 0.02

Make = Callable[[torch.device, int], tuple[Call, Work]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """A kernel at a shape.

    `kernel` is the name that it gives to `launching.config`. `changes`: options to try in place of
    its own, each a part of what it asks for. `make(device, seed)` makes buffers and gives a call of
    the kernel on them, and its work.
    """

    kernel: str
    shape: str
    changes: Sequence[Mapping[str, int]]
    make: Make


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was measured: `seconds` of the kernel's own numbers and of each change (infinite where
    it did not run), `errors` of those that did not, and the `values` that won."""

    kernel: str
    bucket: str
    seconds: tuple[float, ...]
    errors: tuple[str, ...]
    values: Mapping[str, int]

    @property
    def best_s(self) -> float:
        return min(self.seconds)


def find_tunes(modules: Sequence[str]) -> list[Tune]:
    """What the modules have in `TUNE`, in order."""
    return [one for name in modules for one in getattr(importlib.import_module(name), "TUNE", ())]


def tune(
    one: Tune,
    device: torch.device,
    time_s: Callable[[Sequence[Call]], float] = median_s,
    copies: Callable[[float, torch.device], int] = num_copies,
) -> Tuned:
    """Measures the kernel's own numbers and every change. What the first raises is the caller's."""
    call, work = one.make(device, 0)
    calls = [call]
    calls += [one.make(device, seed)[0] for seed in range(1, copies(work.bytes, device))]
    with observed() as asked:
        call()
    buckets = [bucket for kernel, bucket in asked if kernel == one.kernel]
    if len(buckets) != 1:
        raise ValueError(f"{one.kernel} at {one.shape} asks for {len(buckets)} buckets, not one")
    own = asked[one.kernel, buckets[0]]
    seconds, errors = [time_s(calls)], []
    for change in one.changes:
        try:
            if not change.keys() <= own.keys():
                raise ValueError(f"the kernel has {', '.join(own)} alone")
            with tried(one.kernel, change):
                seconds.append(time_s(calls))
        except Exception as error:  # too much shared memory, tiles that do not fit: of any kind
            seconds.append(math.inf)
            errors.append(f"{dict(change)}: {type(error).__name__}: {error}"[:300])
    best = min(range(len(seconds)), key=seconds.__getitem__)
    better = best > 0 and seconds[best] <= seconds[0] * (1 - MARGIN)
    return Tuned(
        kernel=one.kernel,
        bucket=buckets[0],
        seconds=tuple(seconds),
        errors=tuple(errors),
        values={**own, **one.changes[best - 1]} if better else own,
    )


def compile_all(one: Tune, device: torch.device) -> None:
    """Call the kernel with its own numbers and with every change, so that Triton has them on disk;
    what does not run is for `tune` to say."""
    call, _ = one.make(device, 0)
    for change in ({}, *one.changes):
        with contextlib.suppress(Exception), tried(one.kernel, change):
            call()


def configs_of(results: Iterator[Tuned] | Sequence[Tuned]) -> Configs:
    """What won, by kernel and bucket; of several shapes of one bucket the last."""
    found: Configs = {}
    for result in results:
        found.setdefault(result.kernel, {})[result.bucket] = dict(result.values)
    return found


def merged(path: Path, kernels: Configs, triton_version: str) -> Configs:
    """With the buckets that `path` has from an earlier measurement under this Triton."""
    if not path.exists():
        return kernels
    before = json.loads(path.read_text(encoding="utf-8"))
    if not before["measured"] or before["triton"] != triton_version:
        return kernels
    every: Configs = before["kernels"]
    return every | {name: every.get(name, {}) | buckets for name, buckets in kernels.items()}


def document(kernels: Configs, triton_version: str, source: str, measured: bool) -> dict[str, Any]:
    """A file of configurations, as `launching.configs_for` reads it."""
    return {"triton": triton_version, "measured": measured, "source": source, "kernels": kernels}


def default_path(device_name: str) -> Path:
    """The shipped file of a GPU, else one of its own name."""
    name = slug(device_name)
    known = next((gpu for gpu in GPUS if name.startswith(gpu)), name)
    return CONFIGS / f"{known}.json"
