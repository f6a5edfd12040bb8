"""A sweep as data: what stays, what varies, and the runs that follow. It reads and runs nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.simjob import SimJob

BEST, RULE = "best", "rule"
"""Layouts that are found: by a search, by rule of thumb."""

Trouble = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """A kind of trouble: nothing, a file (`{seed}` in its path is the seed), or lines in the sweep
    itself, whose `gpu` may be a word: a GPU drawn by the seed, the same for the same word. places:
    where in the file of the sweep these stand."""

    name: str
    path: str | None = None
    lines: tuple[Trouble, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A named set of `--set` options."""

    name: str
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a file asks for. fixed: fields of `SimJob` that are the same in all runs; rows: how many
    rows of the trace a seed draws, None: all of them."""

    name: str
    path: str
    fixed: Mapping[str, Any]
    rows: int | None
    policies: tuple[str, ...]
    layouts: tuple[str, ...]
    gpus: tuple[int, ...]
    devices: tuple[Devices, ...]
    options: tuple[Options, ...]
    seeds: tuple[int, ...]

    @property
    def num_runs(self) -> int:
        axes = (self.policies, self.layouts, self.gpus, self.devices, self.options, self.seeds)
        number = 1
        for axis in axes:
            number *= len(axis)
        return number

    def runs(self) -> Iterator[Run]:
        """All runs, in the order of the table: seeds vary fastest."""
        axes = itertools.product(
            self.devices, self.gpus, self.layouts, self.policies, self.options, self.seeds
        )
        for number, (devices, gpus, layout, policy, options, seed) in enumerate(axes):
            yield Run(
                number=number,
                policy=policy,
                layout=layout,
                gpus=gpus,
                devices=devices,
                options=options,
                seed=seed,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One cell of a sweep."""

    number: int
    policy: str
    layout: str
    gpus: int
    devices: Devices
    options: Options
    seed: int

    def job(self, sweep: Sweep, faults: str | None) -> SimJob:
        """What is simulated, with its troubles in a file. Raises UserError."""
        return SimJob(
            **sweep.fixed,
            gpus=self.gpus,
            layout=None if self.layout in (BEST, RULE) else self.layout,
            policy=self.policy,
            overrides=self.options.pairs,
            seed=self.seed,
            faults=faults,
        )
