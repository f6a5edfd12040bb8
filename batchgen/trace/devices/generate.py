"""Draws device traces from rates, with a seed: failures, slow spells, reclaims, skew, busy hosts.

Each kind has a random stream of its own, so that changing one leaves the others as they are. Reads
no file; the numbers and their sources: rates.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.random import Generator

from batchgen.errors import UserError
from batchgen.trace.devices.events import FACTORS, MAX_DEVICES, MAX_S, NORMAL, DeviceTrace, Trouble
from batchgen.trace.devices.rates import Rates

PS = 10**12
HOUR_S = 3600.0
KINDS = ("failures", "spread", "slow", "spot", "skew", "host")
USUAL = ("failures", "spread", "slow")
"""What devices of one's own do; skew and busy hosts have hardly a source."""
MAX_LINES = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawOptions:
    """What to draw, for which cluster."""

    gpus: int
    gpus_per_node: int = 8
    hours: float = 6.0
    seed: int = 0
    kinds: tuple[str, ...] = USUAL

    def __post_init__(self) -> None:
        checks = (
            (1 <= self.gpus <= MAX_DEVICES, f"{self.gpus} GPUs", f"give 1 to {MAX_DEVICES}"),
            (
                1 <= self.gpus_per_node <= MAX_DEVICES,
                f"{self.gpus_per_node} GPUs per node",
                "give at least 1",
            ),
            (
                0 < self.hours <= MAX_S / HOUR_S,
                f"{self.hours:g} hours",
                f"give more than 0 and at most {MAX_S / HOUR_S:.0f}",
            ),
            (self.seed >= 0, f"seed {self.seed}", "give one from 0"),
        )
        for good, message, remedy in checks:
            if not good:
                raise UserError(message, remedy=remedy)
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise UserError(
                f"no kind of device trouble: {', '.join(unknown) or 'none given'}",
                remedy=f"choose from {', '.join(KINDS)}",
            )


def draw(options: DrawOptions, rates: Rates, name: str = "drawn") -> DeviceTrace:
    """A device trace. Same arguments, same trace."""
    streams = np.random.default_rng(options.seed).spawn(len(KINDS))
    lines: list[Trouble] = []
    for kind, rng in zip(KINDS, streams, strict=True):
        if kind in options.kinds:
            lines += DRAWN[kind](_Dice(rng, options), rates)
    lines.sort(key=lambda one: (one.at_ps, one.node, one.gpu))
    meta: dict[str, Any] = {
        "source": "batchgen trace devices generate",
        "seed": options.seed,
        "kinds": [kind for kind in KINDS if kind in options.kinds],
        "rates": {group: dict(of) for group, of in rates.items() if group in options.kinds},
    }
    return DeviceTrace(
        name=name,
        troubles=tuple(lines),
        gpus=options.gpus,
        gpus_per_node=options.gpus_per_node,
        span_ps=round(options.hours * HOUR_S) * PS,
        meta=meta,
    )


class _Dice:
    """One stream of randomness, and the cluster that it is for. Times are kept to milliseconds,
    factors to hundredths."""

    def __init__(self, rng: Generator, options: DrawOptions) -> None:
        self.rng, self.options = rng, options
        self.end_s = options.hours * HOUR_S
        self.nodes = -(-options.gpus // options.gpus_per_node)

    def times(self, per_h: float) -> Iterator[float]:
        """Of a Poisson process."""
        if per_h * self.options.hours > MAX_LINES:
            raise UserError(
                f"{per_h * self.options.hours:.0f} troubles of one kind",
                remedy="lower its rate or the hours",
            )
        now = 0.0
        while per_h > 0:
            now += float(self.rng.exponential(HOUR_S / per_h))
            if now >= self.end_s:
                return
            yield now

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def gpu(self) -> int:
        return int(self.rng.integers(self.options.gpus))

    def node(self) -> int:
        return int(self.rng.integers(self.nodes))

    def spell_s(self, median_s: float, sigma: float) -> float:
        """Log-normal, and at most as long as a trace may be."""
        if median_s <= 0:
            return 0.001
        return min(exp(log(median_s) + sigma * float(self.rng.standard_normal())), MAX_S)

    def spell_of_mean_s(self, mean_s: float, sigma: float) -> float:
        return self.spell_s(mean_s * exp(-(min(sigma, 30.0) ** 2) / 2), sigma)


def _ps(seconds: float) -> int:
    return max(1, round(seconds * 1000)) * (PS // 1000)


def _factor(kind: str, value: float) -> int:
    low, high = FACTORS[kind]
    return min(max(round(value * 100) * (NORMAL // 100), low), high)


def _failures(dice: _Dice, rates: Rates) -> list[Trouble]:
    """A GPU, or a whole node, is lost until it is repaired."""
    at = rates["failures"]
    found = []
    for now in dice.times(dice.options.gpus / at["mtbf_gpu_h"]):
        gpu, whole = dice.gpu(), dice.chance(at["node_share"])
        place = (-1, gpu // dice.options.gpus_per_node) if whole else (gpu, -1)
        repair_s = dice.spell_of_mean_s(at["repair_mean_h"] * HOUR_S, at["repair_sigma"])
        found.append(Trouble(_ps(now), "lost", *place, for_ps=_ps(repair_s)))
    return found


def _spread(dice: _Dice, rates: Rates) -> list[Trouble]:
    """GPUs that are always a little slow."""
    at = rates["spread"]
    found = []
    for gpu in range(dice.options.gpus):
        factor = 1.0 + at["sd"] * float(dice.rng.standard_normal())
        if dice.chance(at["outlier_share"]):
            factor = dice.between(at["outlier_low"], at["outlier_high"])
        thousandths = _factor("slow", factor)
        if thousandths > NORMAL:  # the others are as fast as the plan takes them to be
            found.append(Trouble(0, "slow", gpu, factor=thousandths))
    return found


def _slow(dice: _Dice, rates: Rates) -> list[Trouble]:
    """Spells of a GPU (heat, contention), of a node (network), and workers that stay bad."""
    at = rates["slow"]
    found = []
    for now in dice.times(dice.options.gpus * at["gpu_per_h"]):
        gpu = dice.gpu()
        if dice.chance(at["bad_share"]):
            factor, spell_s = at["bad_factor"], dice.end_s - now
        else:
            factor = dice.between(at["gpu_low"], at["gpu_high"])
            spell_s = dice.spell_of_mean_s(at["gpu_mean_s"], at["gpu_sigma"])
        found.append(
            Trouble(_ps(now), "slow", gpu, factor=_factor("slow", factor), for_ps=_ps(spell_s))
        )
    for now in dice.times(dice.nodes * at["node_per_h"]):
        severe = "severe" if dice.chance(at["severe_share"]) else "node"
        factor = dice.between(at[f"{severe}_low"], at[f"{severe}_high"])
        spell_s = dice.spell_of_mean_s(at["node_mean_s"], at["node_sigma"])
        line = Trouble(
            _ps(now), "slow", -1, dice.node(), _factor("slow", factor), for_ps=_ps(spell_s)
        )
        found.append(line)
    return found


def _spot(dice: _Dice, rates: Rates) -> list[Trouble]:
    """Bursts of nodes are taken back, after a notice."""
    at = rates["spot"]
    mean, most = max(at["burst_nodes"], 1.0), max(1, min(int(at["most_nodes"]), dice.nodes))
    found = []
    for now in dice.times(dice.nodes * at["node_per_h"] / mean):
        size = min(int(dice.rng.geometric(1 / mean)), most)
        notice_s = min(at["notice_s"], now)
        for node in sorted(dice.rng.choice(dice.nodes, size, replace=False).tolist()):
            down_s = dice.spell_s(at["down_median_h"] * HOUR_S, at["down_sigma"])
            lost_ps, notice_ps = _ps(now), _ps(now) - _ps(now - notice_s)
            if notice_ps > 0:
                told_ps = lost_ps - notice_ps
                found.append(Trouble(told_ps, "notice", -1, node, deadline_ps=notice_ps))
            found.append(Trouble(lost_ps, "lost", -1, node, for_ps=_ps(down_s)))
    return found


def _skew(dice: _Dice, rates: Rates) -> list[Trouble]:
    """The exponent of the experts' load wanders about its mean (first-order autoregression)."""
    at = rates["skew"]
    steps = int(dice.end_s // at["step_s"]) + 1
    if steps > MAX_LINES:
        raise UserError(f"{steps} steps of the skew", remedy="raise skew.step_s")
    keep = exp(-at["step_s"] / (at["revert_h"] * HOUR_S)) if at["revert_h"] else 0.0
    noise = at["sd"] * sqrt(1 - keep * keep)
    away = at["sd"] * float(dice.rng.standard_normal())
    found: list[Trouble] = []
    for step in range(steps):
        value = min(max(at["mean"] + away, 0.0), at["highest"])
        factor = _factor("skew", value)
        if not found or factor != found[-1].factor:
            at_ps = round(step * at["step_s"] * 1000) * (PS // 1000)
            found.append(Trouble(at_ps, "skew", factor=factor))
        away = keep * away + noise * float(dice.rng.standard_normal())
    return found


def _host(dice: _Dice, rates: Rates) -> list[Trouble]:
    """Others use the memory of a host, and copies to and from it take longer."""
    at = rates["host"]
    found = []
    for now in dice.times(dice.nodes * at["node_per_h"]):
        factor = max(_factor("host", dice.between(at["low"], at["high"])), NORMAL)
        spell_ps = _ps(dice.spell_of_mean_s(at["mean_s"], at["sigma"]))
        found.append(Trouble(_ps(now), "host", -1, dice.node(), factor, for_ps=spell_ps))
    return found


DRAWN: dict[str, Callable[[_Dice, Rates], list[Trouble]]] = {
    "failures": _failures,
    "spread": _spread,
    "slow": _slow,
    "spot": _spot,
    "skew": _skew,
    "host": _host,
}
