"""Surfaces are what they were fitted to, fill gaps smoothly, and stand outliers."""

from __future__ import annotations

import numpy as np
import pytest

from batchgen.cost.surface import Axis, fit_surface, knots

X = Axis(column="x", knots=knots(0, 8))
Y = Axis(column="y", knots=knots(0, 4))
Z = Axis(column="z", knots=(0.0, 1.0), smooth=0.0)


def points(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.uniform(0, 8, count),
        "y": rng.uniform(0, 4, count),
        "z": rng.integers(0, 2, count).astype(float),
    }


def truth(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Multilinear between the knots of (X, Y) and (X, Z)."""
    return 0.3 * columns["x"] - 0.1 * columns["x"] * columns["y"] + columns["x"] * columns["z"] - 2


def test_a_sum_of_terms_is_found_from_points() -> None:
    fitted = fit_surface([(X, Y), (X, Z)], points(4000), truth(points(4000)))
    other = points(500, seed=1)
    assert np.abs(fitted(other) - truth(other)).max() < 0.02


def test_what_no_point_is_near_is_filled_along_straight_lines() -> None:
    columns = points(4000)
    seen = (columns["x"] < 2.9) | (columns["x"] > 6.1)
    kept = {name: values[seen] for name, values in columns.items()}
    fitted = fit_surface([(X, Y), (X, Z)], kept, truth(kept))
    gap = {name: values[~seen] for name, values in columns.items()}
    assert np.abs(fitted(gap) - truth(gap)).max() < 0.1


def test_some_wrong_points_change_little() -> None:
    columns = points(4000)
    values = truth(columns)
    values[::20] += 5.0
    fitted = fit_surface([(X, Y), (X, Z)], columns, values)
    assert np.median(np.abs(fitted(columns) - truth(columns))) < 0.02


def test_beyond_the_knots_it_is_constant() -> None:
    fitted = fit_surface([(X,)], {"x": np.array([0.0, 4.0, 8.0])}, np.array([1.0, 2.0, 5.0]))
    ends = fitted({"x": np.array([-5.0, 0.0, 8.0, 100.0])})
    assert ends[0] == ends[1]
    assert ends[2] == ends[3]
    assert ends[[1, 2]] == pytest.approx([1.0, 5.0], abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_point_between_knots_mixes_them(seed: int) -> None:
    """Inside a cell: between the least and the most of its corners, linear along each axis."""
    rng = np.random.default_rng(seed)
    columns = points(300, seed)
    fitted = fit_surface([(X, Y)], columns, rng.normal(size=300))
    x, y = rng.integers(0, 8), rng.integers(0, 4)
    corners = [
        fitted({"x": np.array([float(x + a)]), "y": np.array([float(y + b)])})[0]
        for a in (0, 1)
        for b in (0, 1)
    ]
    a, b = rng.random(2)
    inside = fitted({"x": np.array([x + a]), "y": np.array([y + b])})[0]
    expected = np.array([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b]) @ corners
    assert inside == pytest.approx(expected, abs=1e-9)
