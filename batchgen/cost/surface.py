"""A smooth function of a few logarithms: the sum of small lattices, fitted to measured points.

A term is a table of values at knots of some of the columns, multilinear between the knots and
constant beyond them. A sum of terms of two to four columns says as much of a kernel as one table of
all columns, needs far fewer points, and holds for shapes that nobody measured. The fit is of least
absolute errors (by weights that are made anew), held smooth by second differences along each axis:
that fills knots which no point is near. Nothing here knows what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.cost.api import FloatArray, IntArray

ROUNDS = 4  # of new weights
MOST_STEPS = 80  # of conjugate gradients
ENOUGH = 1e-7  # of the first residual, by its power
LEAST_ERROR = 0.02  # smaller errors count as this: nothing is measured better
LEVEL = 1e-4  # what a value costs, so that knots without points stay near 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Rising `knots` of one column, and what a second difference along it costs, against the error
    of one point."""

    column: str
    knots: tuple[float, ...]
    smooth: float = 0.3


Term = tuple[Axis, ...]
Columns = dict[str, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """`values[i]` has the shape of the knots of `terms[i]`."""

    terms: tuple[Term, ...]
    values: tuple[NDArray[np.float32], ...]

    def __call__(self, columns: Columns) -> FloatArray:
        """Values [P] at columns [P]."""
        total: FloatArray = np.zeros(1)
        for term, values in zip(self.terms, self.values, strict=True):
            places, parts = _corners(term, columns)
            flat = values.reshape(-1).astype(np.float64)
            total = total + (flat[places] * parts).sum(axis=1)
        return total


def fit_surface(terms: Sequence[Term], columns: Columns, values: FloatArray) -> Surface:
    """The surface of these terms nearest to `values` [P] at `columns` [P]."""
    shapes = [tuple(len(axis.knots) for axis in term) for term in terms]
    sizes = [int(np.prod(shape)) for shape in shapes]
    begins = np.concatenate(([0], np.cumsum(sizes))).tolist()
    found_rows, found_columns, found_parts = [], [], []
    for term, begin in zip(terms, begins[:-1], strict=True):
        places, parts = _corners(term, columns)
        real = parts != 0.0  # points that lie on knots need no others
        found_rows.append(np.nonzero(real)[0])
        found_columns.append(places[real] + begin)
        found_parts.append(parts[real])
    rows, knots = np.concatenate(found_rows), np.concatenate(found_columns)
    parts = np.concatenate(found_parts)
    count, size = len(values), begins[-1]
    cost = np.concatenate(
        [
            np.full(n, LEVEL + 6 * sum(axis.smooth for axis in term))
            for n, term in zip(sizes, terms, strict=True)
        ]
    )

    def held(x: FloatArray) -> FloatArray:
        rough = [
            _roughness(x[begin : begin + n].reshape(shape), term).ravel()
            for begin, n, shape, term in zip(begins, sizes, shapes, terms, strict=False)
        ]
        return np.concatenate(rough) + LEVEL * x

    found, error = np.zeros(size), np.ones(count)
    for _ in range(ROUNDS):
        weight = 1.0 / np.maximum(np.abs(error), LEAST_ERROR)
        weight /= weight.mean()

        def times(x: FloatArray, weight: FloatArray = weight) -> FloatArray:
            at = np.bincount(rows, parts * x[knots], count) * weight
            return np.bincount(knots, parts * at[rows], size) + held(x)

        right = np.bincount(knots, parts * (values * weight)[rows], size).astype(np.float64)
        diagonal = np.bincount(knots, parts**2 * weight[rows], size) + cost
        found = _solve(times, right, diagonal, found)
        error = np.bincount(rows, parts * found[knots], count) - values
    return Surface(
        terms=tuple(terms),
        values=tuple(
            found[begin : begin + n].reshape(shape).astype(np.float32)
            for begin, n, shape in zip(begins, sizes, shapes, strict=False)
        ),
    )


def _corners(term: Term, columns: Columns) -> tuple[IntArray, FloatArray]:
    """The knots around each point, by number [P, 2^axes], and their parts, which sum to 1."""
    count = len(columns[term[0].column])
    places, parts = np.zeros((count, 1), dtype=np.int64), np.ones((count, 1))
    for axis in term:
        size = len(axis.knots)
        x = np.interp(columns[axis.column], axis.knots, np.arange(size))
        low = np.minimum(x.astype(np.int64), size - 2)
        part = (x - low)[:, None]
        places = places * size + low[:, None]
        places = np.concatenate((places, places + 1), axis=1)
        parts = np.concatenate((parts * (1 - part), parts * part), axis=1)
    return places, parts


def _roughness(values: FloatArray, term: Term) -> FloatArray:
    """D'D x, where D takes second differences along every axis by their costs."""
    total = np.zeros_like(values)
    for number, axis in enumerate(term):
        if len(axis.knots) < 3 or not axis.smooth:
            continue
        x, back = np.moveaxis(values, number, 0), np.moveaxis(total, number, 0)
        second = axis.smooth * (x[:-2] - 2 * x[1:-1] + x[2:])
        back[:-2] += second
        back[1:-1] -= 2 * second
        back[2:] += second
    return total


def _solve(
    times: Callable[[FloatArray], FloatArray],
    right: FloatArray,
    diagonal: FloatArray,
    start: FloatArray,
) -> FloatArray:
    """x with times(x) = right, by conjugate gradients with the diagonal for a measure."""
    x = start.copy()
    rest = right - times(x)
    step = rest / diagonal
    direction = step.copy()
    power = _dot(rest, step)
    goal = ENOUGH * max(_dot(right, right / diagonal), 1e-300)
    for _ in range(MOST_STEPS):
        if power <= goal:
            break
        image = times(direction)
        length = power / _dot(direction, image)
        x += length * direction
        rest -= length * image
        step = rest / diagonal
        power, before = _dot(rest, step), power
        direction = step + (power / before) * direction
    return x


def _dot(first: FloatArray, second: FloatArray) -> float:
    """Not by BLAS, which takes several threads for more than 10,000 values: they wait for each
    other longer than the sum takes, and ten times that where the cores have other work."""
    return float(np.einsum("i,i->", first, second))


def knots(low: float, high: float, step: float = 1.0) -> tuple[float, ...]:
    """Knots from `low` to `high`, equally far apart, `step` at most about."""
    count = max(2, round((high - low) / step) + 1)
    return tuple(np.linspace(low, high, count).tolist())
