"""Length distributions: log-normal, Pareto, constant, given quantiles, mixtures. No arrivals.

Every distribution samples whole tokens from 1 to its maximum; values beyond are clipped, not
drawn again. The text grammar of the command line is parsed here:

    lognormal:mean=700,sigma=0.8,max=8192
    pareto:mean=500,alpha=2.5
    constant:512
    quantiles:P50 700, P95 4196, P99 15843, P99.9 26493, max 38631, mean 1200
    0.7*lognormal:mean=300,sigma=1 + 0.3*constant:4096
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from batchgen.errors import UserError
from batchgen.trace.table import MAX_TOKENS

NORMAL = NormalDist()
# Standard-normal grid for means of piecewise distributions; beyond 8 lies 1e-15 of the mass.
GRID = np.linspace(-8.0, 8.0, 16001)
GRID_WEIGHTS = np.exp(-0.5 * GRID**2) / np.exp(-0.5 * GRID**2).sum()


class Lengths(Protocol):
    """A distribution of token counts."""

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int32]:
        """n independent lengths of at least 1 token."""
        ...


@runtime_checkable
class OfNormal(Protocol):
    """A distribution whose lengths are a function of a standard normal variable, so that rows may
    share a part of it."""

    def of(self, normal: NDArray[np.float64]) -> NDArray[np.int32]:
        """One length for each value of the variable."""
        ...


def _whole(values: NDArray[np.float64], maximum: int | None) -> NDArray[np.int32]:
    return np.clip(np.rint(values), 1, maximum or MAX_TOKENS).astype(np.int32)


def _require(good: bool, what: str, remedy: str) -> None:
    if not good:
        raise UserError(what, remedy=remedy, code="bad_distribution")


def _check_max(maximum: int | None) -> None:
    _require(
        maximum is None or 1 <= maximum <= MAX_TOKENS,
        f"max={maximum}: not a number of tokens",
        f"give 1 to {MAX_TOKENS}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Always `tokens`."""

    tokens: int

    def __post_init__(self) -> None:
        _require(
            1 <= self.tokens <= MAX_TOKENS,
            f"constant:{self.tokens}: not a number of tokens",
            f"give 1 to {MAX_TOKENS}",
        )

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int32]:
        return np.full(n, self.tokens, dtype=np.int32)

    def of(self, normal: NDArray[np.float64]) -> NDArray[np.int32]:
        """The same, one for each of these."""
        return np.full(len(normal), self.tokens, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """Log-normal with this mean of the distribution (not of the logarithm), before clipping."""

    mean: float
    sigma: float
    max: int | None = None

    def __post_init__(self) -> None:
        _require(
            1 <= self.mean <= MAX_TOKENS and 0 <= self.sigma <= 10,
            f"lognormal: mean {self.mean:g}, sigma {self.sigma:g}",
            "give a mean of at least 1 token and a sigma from 0 to 10",
        )
        _check_max(self.max)

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int32]:
        return self.of(rng.standard_normal(n))

    def of(self, normal: NDArray[np.float64]) -> NDArray[np.int32]:
        """The lengths at these values of a standard normal variable."""
        mu = math.log(self.mean) - self.sigma**2 / 2
        return _whole(np.exp(mu + self.sigma * normal), self.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """Pareto with tail exponent alpha > 1 and this mean, before clipping.

    The smallest value follows as mean (alpha - 1) / alpha.
    """

    mean: float
    alpha: float
    max: int | None = None

    def __post_init__(self) -> None:
        _require(
            1 <= self.mean <= MAX_TOKENS and 1 < self.alpha <= 100,
            f"pareto: mean {self.mean:g}, alpha {self.alpha:g}",
            "give a mean of at least 1 token and an alpha above 1 (below, there is no mean)",
        )
        _check_max(self.max)

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int32]:
        smallest = self.mean * (self.alpha - 1) / self.alpha
        return _whole(smallest * (1 + rng.pareto(self.alpha, n)), self.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Through given quantiles: log(length) is piecewise linear in the standard-normal quantile.

    So between two given points, and beyond the outer ones, the curve is a log-normal; `max` clips
    the upper end. At least two of quantiles and median are needed. A given `mean` fixes what the
    quantiles leave open, the body below them: one more point at half the lowest given probability
    is set so that the mean comes out.
    """

    points: tuple[tuple[float, float], ...]
    max: int | None = None
    mean: float | None = None

    def __post_init__(self) -> None:
        advice = "give at least two, as in 'P50 700, P99 15843, max 38631'"
        _require(len(self.points) >= 2, "quantiles: fewer than two quantiles", advice)
        shares = [p for p, _ in self.points]
        values = [v for _, v in self.points]
        _require(
            all(0 < p < 1 for p in shares) and all(1 <= v <= MAX_TOKENS for v in values),
            "quantiles: a percentile outside 0 to 100 or a length below 1",
            advice,
        )
        rising = all(a < b for a, b in pairwise(shares))
        _require(
            rising and sorted(values) == values,
            "quantiles: lengths must not fall and percentiles must rise",
            "order them and name each percentile once",
        )
        _check_max(self.max)
        _require(
            self.max is None or self.max >= values[-1],
            f"quantiles: max {self.max} is below the highest quantile",
            "raise max",
        )
        if self.mean is not None:
            self._curve()  # an unreachable mean is an error now, not at the first sample

    def _curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        z = np.array([NORMAL.inv_cdf(p) for p, _ in self.points])
        log_v = np.log([v for _, v in self.points])
        if self.mean is None:
            return z, log_v
        lowest_p, lowest_v = self.points[0]
        z = np.concatenate(([NORMAL.inv_cdf(lowest_p / 2)], z))

        def with_point(value: float) -> NDArray[np.float64]:
            return np.concatenate(([value], log_v))

        def mean_of(value: float) -> float:
            curve = np.exp(_extend(GRID, z, with_point(value)))
            return float(np.clip(curve, 1, self.max or MAX_TOKENS) @ GRID_WEIGHTS)

        # exp(-60) is zero tokens for every purpose: all rows below the point become 1 token.
        low, high = -60.0, math.log(lowest_v)
        _require(
            mean_of(low) <= self.mean <= mean_of(high),
            f"quantiles: no curve of this kind through these points has the mean {self.mean:g} "
            f"(possible here: {mean_of(low):.0f} to {mean_of(high):.0f})",
            "leave the mean out or correct it",
        )
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_of(middle) < self.mean else (low, middle)
        return z, with_point((low + high) / 2)

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int32]:
        return self.of(rng.standard_normal(n))

    def of(self, normal: NDArray[np.float64]) -> NDArray[np.int32]:
        """The lengths at these values of a standard normal variable."""
        z, log_v = self._curve()
        # The bound keeps exp in range where the outer slope is steep.
        return _whole(np.exp(np.minimum(_extend(normal, z, log_v), 22.0)), self.max)


def _extend(
    x: NDArray[np.float64], z: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Piecewise linear through (z, y), going on with the outer slopes."""
    inside: NDArray[np.float64] = np.interp(x, z, y)
    below = y[0] + (x - z[0]) * (y[1] - y[0]) / (z[1] - z[0])
    above = y[-1] + (x - z[-1]) * (y[-1] - y[-2]) / (z[-1] - z[-2])
    return np.where(x < z[0], below, np.where(x > z[-1], above, inside))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Each row takes one part at random, with probability proportional to its weight."""

    parts: tuple[tuple[float, Lengths], ...]

    def __post_init__(self) -> None:
        weights = [weight for weight, _ in self.parts]
        _require(
            bool(weights) and all(0 < weight < math.inf for weight in weights),
            "mixture: a weight is not positive",
            "write it as '0.7*A + 0.3*B'",
        )

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int32]:
        which = choose_part(rng, [weight for weight, _ in self.parts], n)
        out = np.zeros(n, dtype=np.int32)
        for i, (_, part) in enumerate(self.parts):
            rows = np.flatnonzero(which == i)
            out[rows] = part.sample(rng, rows.size)
        return out


def choose_part(rng: np.random.Generator, weights: list[float], n: int) -> NDArray[np.int64]:
    """n indices, each drawn with probability proportional to its weight."""
    # Of the largest first: weights near the largest number there is have no sum.
    shares = np.array(weights) / max(weights)
    shares /= shares.sum()
    return rng.choice(len(weights), size=n, p=shares)


def parse_quantiles(text: str) -> Quantiles:
    """A Quantiles from text such as "P95 4196, P99 15843, P99.9 26493, max 38631"."""
    points: list[tuple[float, float]] = []
    others: dict[str, float] = {}
    for item in text.split(","):
        match = re.fullmatch(
            r"\s*(?:p\s*(\d+(?:\.\d+)?)|(median|mean|max))\s*[= ]\s*(\d+(?:\.\d+)?)\s*",
            item,
            re.IGNORECASE,
        )
        if match is None:
            raise UserError(
                f"quantiles: cannot read {item.strip()!r}",
                remedy="write 'P95 4196, P99 15843, max 38631', optionally with median or mean",
                code="bad_distribution",
            )
        value = _number(match[3], "quantiles")
        if match[2] is None:
            points.append((round(float(match[1]) / 100, 12), value))
        elif match[2].lower() == "median":
            points.append((0.5, value))
        else:
            others[match[2].lower()] = value
    return Quantiles(
        points=tuple(sorted(points)),
        max=int(others["max"]) if "max" in others else None,
        mean=others.get("mean"),
    )


OPTIONS: Mapping[str, tuple[str, ...]] = {
    "lognormal": ("mean", "sigma", "max"),
    "pareto": ("mean", "alpha", "max"),
}


def parse_lengths(text: str) -> Lengths:
    """A distribution from its text; the grammar is in the module's docstring. UserError if bad."""
    parts = re.split(r"\s\+\s", text.strip())
    if len(parts) > 1 or re.match(r"[\d.]+\s*\*", parts[0]):
        weighted = []
        for part in parts:
            weight, star, rest = part.partition("*")
            number = _number(weight, "mixture") if star else 1.0
            weighted.append((number, _parse_one(rest if star else part)))
        return Mixture(parts=tuple(weighted))
    return _parse_one(parts[0])


def _parse_one(text: str) -> Lengths:
    kind, _, rest = text.strip().partition(":")
    kind = kind.strip().lower()
    if kind == "constant" or kind.isdecimal():
        value = _number(rest if kind == "constant" else kind, "constant")
        _require(value == int(value), f"constant:{value:g}: not a whole number", "give tokens")
        return Constant(tokens=int(value))
    if kind == "quantiles" or re.match(r"\s*(p\s*\d|median\b|mean\b)", text, re.IGNORECASE):
        return parse_quantiles(rest if kind == "quantiles" else text)
    if kind not in OPTIONS:
        raise UserError(
            f"unknown length distribution {text.strip()!r}",
            remedy="known: lognormal, pareto, constant, quantiles, and mixtures '0.7*A + 0.3*B'",
            code="bad_distribution",
        )
    values: dict[str, float] = {}
    for item in rest.split(","):
        key, _, number = item.partition("=")
        key = key.strip()
        _require(
            key in OPTIONS[kind] and key not in values,
            f"{kind}: {item.strip()!r} is not one of its options",
            f"its options are {', '.join(OPTIONS[kind])}, each once",
        )
        values[key] = _number(number, f"{kind} {key}")
    needed = OPTIONS[kind][:2]
    missing = [key for key in needed if key not in values]
    _require(not missing, f"{kind}: {', '.join(missing)} missing", f"give {' and '.join(needed)}")
    maximum = int(values["max"]) if "max" in values else None
    if kind == "lognormal":
        return Lognormal(mean=values["mean"], sigma=values["sigma"], max=maximum)
    return Pareto(mean=values["mean"], alpha=values["alpha"], max=maximum)


def _number(text: str, what: str) -> float:
    try:
        value = float(text.strip())
    except ValueError:
        value = math.nan
    _require(math.isfinite(value), f"{what}: {text.strip()!r} is not a number", "give a number")
    return value
