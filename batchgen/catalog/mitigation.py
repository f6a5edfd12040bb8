"""Published outcomes of migration and of work on long tails: one policy over another on one load.

Each source is a file of `outcomes/`. It says what the load is, what was assumed of it before any of
it was simulated, which settings stand for its policies, and what is left out and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from batchgen.catalog.tail_batching import Rounds
from batchgen.simcommand import overrides_of
from batchgen.simjob import SimJob

BAR = 0.25
"""Largest distance of a simulated ratio from the published one, or from the nearer end of its
range."""


class RolloutLoad(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows on GPUs: `samples` of each prompt, their outputs `alike` (see
    `batchgen.trace.generate`). outputs: weights of kinds of prompts by their distribution; limit:
    the output budget of every row. context: tokens that a row may come to, where the paper runs the
    model beyond its own."""

    model: str
    gpu: str
    gpus: int
    layout: str
    rows: int
    samples: int
    alike: float
    prompt: str
    outputs: dict[str, float]
    limit: int
    context: int | None = None


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"changes": "set"}):
    """What stands for a published policy."""

    policy: str
    changes: dict[str, Any] = {}
    oracle: bool = False


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Time of `before` over that of `after` on a load. published: a ratio, or the ends of a range
    over loads of which this is one. rounds: it is about the steps of a training, of which the
    rollouts are simulated (`batchgen.catalog.tail_batching`)."""

    load: str
    before: str
    after: str
    published: float | tuple[float, float]
    rounds: Rounds | None = None

    @property
    def ends(self) -> tuple[float, float]:
        one = self.published
        return one if isinstance(one, tuple) else (one, one)


class LeftOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published outcome that is not simulated."""

    what: str
    why: str


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A paper. assumed: before anything was simulated; changed: of that, after it was."""

    source: str
    about: str
    assumed: list[str] = []
    changed: list[str] = []
    loads: dict[str, RolloutLoad] = {}
    settings: dict[str, Setting] = {}
    comparisons: list[Comparison] = []
    left_out: list[LeftOut] = []


def load_sources() -> dict[str, Source]:
    """Those of the catalog, by the names of their files."""
    import yaml

    folder = resources.files("batchgen.catalog").joinpath("outcomes")
    files = sorted((one for one in folder.iterdir()), key=lambda one: one.name)
    return {
        one.name.removesuffix(".yaml"): msgspec.convert(
            yaml.safe_load(one.read_text("utf-8")), Source
        )
        for one in files
        if one.name.endswith(".yaml")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Simulated seconds of a comparison's two settings, for each draw of the lengths."""

    source: str
    comparison: Comparison
    before_s: tuple[float, ...]
    after_s: tuple[float, ...]
    failed_rows: int = 0

    @property
    def ratio(self) -> float:
        """Of all draws together: papers measure many rollouts."""
        return sum(self.before_s) / sum(self.after_s)

    @property
    def ratios(self) -> list[float]:
        """Of each draw."""
        return [one / other for one, other in zip(self.before_s, self.after_s, strict=True)]

    @property
    def error(self) -> float:
        """Distance from the published ratio, or from the nearer end of its range; 0 inside."""
        low, high = self.comparison.ends
        return min(self.ratio / low - 1, 0.0) + max(self.ratio / high - 1, 0.0)

    @property
    def direction(self) -> bool:
        """Sooner where the paper says sooner; a range on both sides of 1 has none."""
        low, high = self.comparison.ends
        if low >= 1:
            return self.ratio >= 1
        return self.ratio <= 1 if high <= 1 else True

    @property
    def passes(self) -> bool:
        return self.direction and abs(self.error) <= BAR and not self.failed_rows


def write_trace(load: RolloutLoad, path: Path, *, seed: int = 0) -> Path:
    """The rows of a load, made once."""
    import numpy as np

    from batchgen.trace.generate import GenerateOptions, Part, generate
    from batchgen.trace.lengths import parse_lengths
    from batchgen.trace.write import save

    if path.exists():
        return path
    prompt = parse_lengths(load.prompt)
    parts = tuple(
        Part(prompt=prompt, output=parse_lengths(text), weight=weight)
        for text, weight in load.outputs.items()
    )
    options = GenerateOptions(
        num_rows=load.rows, seed=seed, samples_per_prompt=load.samples, alike=load.alike
    )
    trace = generate(parts, options, path.stem)
    trace.max_output_tokens[:] = np.int32(load.limit)
    save(trace, path)
    return path


def job_of(load: RolloutLoad, setting: Setting, trace: Path) -> SimJob:
    """The simulation of a load under a setting."""
    context = {} if load.context is None else {"plan.max_context": load.context}
    return SimJob(
        trace=str(trace),
        model=load.model,
        gpu=load.gpu,
        gpus=load.gpus,
        layout=load.layout,
        policy=setting.policy,
        overrides=overrides_of(setting.changes | context),
        oracle=setting.oracle,
    )


def missed(found: Sequence[Found]) -> list[str]:
    """What is beyond its bar, in words."""
    return [
        f"{one.source}, {one.comparison.load}: {one.comparison.after} is {one.ratio:.2f} times as "
        f"fast as {one.comparison.before}, published {published_text(one.comparison)}"
        for one in found
        if not one.passes
    ]


def published_text(comparison: Comparison) -> str:
    low, high = comparison.ends
    return f"{low:.2f} x" if low == high else f"{low:.2f} to {high:.2f} x"
