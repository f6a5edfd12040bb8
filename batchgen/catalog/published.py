"""Published completion times: cells, what of simulated ones passes, and which orders must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from math import log
from pathlib import Path
from statistics import NormalDist
from typing import Any

import msgspec

from batchgen.simcommand import overrides_of
from batchgen.simjob import SimJob

BAR = 0.15
MEAN_BAR = 0.06
RANKED = 1.10
"""Published times that differ by more than this must come out in the same order."""


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of a model, and the distributions of their lengths in the grammar of trace generate."""

    model: str
    rows: int
    prompt: str
    output: str


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"changes": "set"}):
    """One published time, and what has to be simulated for it. `bar`: the largest error."""

    load: str
    cluster: str
    gpus: int
    layout: str
    system: str
    minutes: float
    name: str = ""
    changes: dict[str, Any] = {}
    bar: float = BAR

    @property
    def label(self) -> str:
        return self.name or self.system


class Ratio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time of `slow` over that of `fast`, by their labels."""

    load: str
    gpus: int
    slow: str
    fast: str
    bar: float


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    loads: dict[str, Load]
    cells: list[Cell]
    ratios: list[Ratio]


def load_published() -> Published:
    """The cells of the catalog."""
    import yaml

    text = resources.files("batchgen.catalog").joinpath("published.yaml").read_text("utf-8")
    return msgspec.convert(yaml.safe_load(text), Published)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Simulated minutes of a cell."""

    cell: Cell
    minutes: float
    failed_rows: int = 0

    @property
    def error(self) -> float:
        return self.minutes / self.cell.minutes - 1

    @property
    def passes(self) -> bool:
        return abs(self.error) <= self.cell.bar and not self.failed_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOutcome:
    ratio: Ratio
    published: float
    simulated: float

    @property
    def passes(self) -> bool:
        return abs(self.simulated / self.published - 1) <= self.ratio.bar


def ratios(published: Published, outcomes: Sequence[Outcome]) -> list[RatioOutcome]:
    """Those whose two cells were simulated."""
    by_key = {(one.cell.load, one.cell.gpus, one.cell.label): one for one in outcomes}
    found = []
    for ratio in published.ratios:
        slow = by_key.get((ratio.load, ratio.gpus, ratio.slow))
        fast = by_key.get((ratio.load, ratio.gpus, ratio.fast))
        if slow is not None and fast is not None:
            found.append(
                RatioOutcome(
                    ratio=ratio,
                    published=slow.cell.minutes / fast.cell.minutes,
                    simulated=slow.minutes / fast.minutes,
                )
            )
    return found


def misordered(outcomes: Sequence[Outcome]) -> tuple[list[tuple[Outcome, Outcome]], int]:
    """Pairs on one load whose order is not the published one, and how many were compared."""
    wrong, count = [], 0
    for one, other in combinations(outcomes, 2):
        if one.cell.load != other.cell.load:
            continue
        slow, fast = (one, other) if one.cell.minutes > other.cell.minutes else (other, one)
        if slow.cell.minutes <= RANKED * fast.cell.minutes:
            continue
        count += 1
        if slow.minutes <= fast.minutes:
            wrong.append((slow, fast))
    return wrong, count


def mean_error(outcomes: Sequence[Outcome]) -> float:
    """Mean of the absolute errors."""
    return sum(abs(one.error) for one in outcomes) / len(outcomes)


def write_trace(name: str, load: Load, folder: Path, *, seed: int = 0) -> Path:
    """The trace of a load as `folder`/`name`.jsonl, made once."""
    from batchgen.trace.generate import GenerateOptions, Part, generate
    from batchgen.trace.lengths import parse_lengths
    from batchgen.trace.write import save

    path = folder / f"{name}.jsonl"
    if not path.exists():
        part = Part(prompt=parse_lengths(load.prompt), output=parse_lengths(load.output))
        save(generate((part,), GenerateOptions(num_rows=load.rows, seed=seed), name), path)
    return path


def respread(load: Load, *, sigma: float, cut_tokens: int) -> Load | None:
    """The load with its log-normal prompts and outputs spread otherwise, outputs cut at
    `cut_tokens`, and the same means after the cut; None: they are not log-normal."""
    from batchgen.trace.lengths import Lognormal, parse_lengths

    lengths = [parse_lengths(text) for text in (load.prompt, load.output)]
    texts = []
    for one, most in zip(lengths, (None, cut_tokens), strict=True):
        if not isinstance(one, Lognormal):
            return None
        most = one.max if most is None else most
        mean = mean_before_cut(one.mean, sigma, most) if most is not None else one.mean
        cut = "" if most is None else f",max={most}"
        texts.append(f"lognormal:mean={mean:.6g},sigma={sigma}{cut}")
    return msgspec.structs.replace(load, prompt=texts[0], output=texts[1])


def mean_before_cut(mean: float, sigma: float, cut: int) -> float:
    """The mean of a log-normal whose values, cut at `cut`, have the mean `mean` (below `cut`)."""
    if sigma == 0:
        return mean
    phi = NormalDist().cdf

    def after(whole: float) -> float:
        z = (log(cut / whole) + sigma**2 / 2) / sigma
        return whole * phi(z - sigma) + cut * (1 - phi(z))

    low, high = mean, 100.0 * mean
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if after(middle) < mean else (low, middle)
    return low


def job_of(cell: Cell, load: Load, trace: Path) -> SimJob:
    """The simulation of a cell, given a trace of its load."""
    return SimJob(
        trace=str(trace),
        model=load.model,
        cluster=cell.cluster,
        gpus=cell.gpus,
        layout=cell.layout,
        policy=cell.system,
        overrides=overrides_of(cell.changes),
    )
