"""Rows that all run, none waits, on engines of which one turns slow by little or much: only running
rows can move. What it takes with and without stealing, beside a bar that mostly holds only with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from straggler_runs import Load, Outcome, capacity_time_s, run, slow

from batchgen.sim.faults import Fault

FACTORS = (1.15, 1.3, 1.45, 2.0, 4.0)
AROUND = 1.05
WITHOUT = ("placement.steal", "false")
Changes = list[tuple[float, float]]
"""(from when on, engines' worth of speed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One trouble of one load. allowed: 1.05 times the completion time of healthy engines, as much
    longer as the speed that is left makes it; it grants no longest row on top."""

    load: Load
    trouble: str
    factor: float
    healthy_s: float
    with_s: float
    without_s: float
    allowed_s: float

    @property
    def holds(self) -> bool:
        return self.with_s <= self.allowed_s

    @property
    def needs_stealing(self) -> bool:
        """Whether the bar is missed without."""
        return self.without_s > self.allowed_s


def loads(seed: int, engines: int, policy: str) -> list[Load]:
    """For each engine 250, 50, 12 or 3 rows, the fewer the longer: they all begin at once."""
    kinds = ((250, 1000, 8000), (50, 2000, 8000), (12, 3000, 8000), (3, 3000, 16000))
    return [
        Load(
            engines=engines,
            rows=each * engines,
            seed=seed,
            output_tokens=mean,
            max_output_tokens=most,
            policy=policy,
        )
        for each, mean, most in kinds
    ]


def cases(load: Load, factors: Sequence[float] = FACTORS) -> Iterator[Case]:
    """All troubles of a load: an engine is slow from the start, or from half time on; the last one
    is when the others have drained; one that was slow from the start heals at half time."""
    healthy = run(load, watch=False)
    for factor in factors:
        for trouble, faults, changes in _troubles(load, healthy, factor):
            yield Case(
                load=load,
                trouble=trouble,
                factor=factor,
                healthy_s=healthy.bct_s,
                with_s=run(load, faults, watch=False).bct_s,
                without_s=run(_without(load), faults, watch=False).bct_s,
                allowed_s=AROUND * capacity_time_s(healthy.bct_s * load.engines, changes),
            )


def _without(load: Load) -> Load:
    return replace(load, overrides=(*load.overrides, WITHOUT))


def _troubles(
    load: Load, healthy: Outcome, factor: float
) -> Iterator[tuple[str, list[Fault], Changes]]:
    victim, last = load.seed % load.engines, int(np.argmax(healthy.last_end_s))
    full, less = float(load.engines), load.engines - 1 + 1 / factor
    half_s, drained_s = healthy.bct_s / 2, sorted(healthy.last_end_s)[-2]
    always = slow(0.0, victim, factor)
    yield "slow from the start", [always], [(0.0, less)]
    late = [(0.0, full), (half_s, less)]
    yield "slow from half time", [slow(half_s, victim, factor)], late
    late = [(0.0, full), (drained_s, less)]
    yield "slow when others drained", [slow(drained_s, last, factor)], late
    heals = [always, slow(half_s, victim, 1.0)]
    yield "slow, heals at half time", heals, [(0.0, less), (half_s, full)]


def table(seeds: int, engines: int, policy: str, tell: Callable[[str], None]) -> bool:
    """Prints the ratios of all cases to healthy engines, the worst of the seeds; whether all bars
    hold."""
    tell(
        f"{'rows that all run':28} {'trouble':26} {'factor':>6} {'allowed':>8} {'with':>8} "
        f"{'without':>8}  times as long as healthy, the worst seed; bars that need stealing"
    )
    found: dict[tuple[int, str, float], list[Case]] = {}
    for seed in range(seeds):
        for load in loads(seed, engines, policy):
            for case in cases(load):
                found.setdefault((load.rows, case.trouble, case.factor), []).append(case)
    for (rows, trouble, factor), some in sorted(found.items()):
        worst = max(some, key=lambda one: one.with_s / one.allowed_s)
        without = max(one.without_s / one.healthy_s for one in some)
        need = sum(one.needs_stealing for one in some)
        name = f"{rows} rows, {worst.load.output_tokens:g} out"
        tell(
            f"{name:28} {trouble:26} {factor:6g} {worst.allowed_s / worst.healthy_s:8.3f} "
            f"{worst.with_s / worst.healthy_s:8.3f} {without:8.3f}  {need} of {len(some)}"
            f"{'' if worst.holds else '  MISSED'}"
        )
    every = [case for some in found.values() for case in some]
    worst_ratio = max(case.with_s / case.healthy_s for case in every)
    tell(
        f"{sum(case.needs_stealing for case in every)} of {len(every)} bars are missed without "
        f"stealing, {sum(not case.holds for case in every)} with it; there the worst is "
        f"{worst_ratio:.3f} times as long as healthy"
    )
    return all(case.holds for case in every)
