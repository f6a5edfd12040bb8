"""All compositions, at random: every property of the core holds for every accepted composition.

Swaps are the presets with one slot swapped for every part; products are all parts of all slots.
"""

from __future__ import annotations

import pytest
from core_cases import products, swaps
from core_verify import random_cases, verify_backends, verify_core

PER_TEST = 50
CHUNKS = range(10)
SOAK = range(100)


@pytest.mark.parametrize("seed", CHUNKS)
@pytest.mark.parametrize("kind", [swaps, products])
def test_random_cases(kind: object, seed: int) -> None:
    """10 x 50 cases of each kind: 1,000."""
    compositions = swaps() if kind is swaps else products()
    random_cases(compositions, seed, PER_TEST, verify_core)


@pytest.mark.parametrize("seed", CHUNKS)
def test_the_simulator_equals_a_plain_walk(seed: int) -> None:
    random_cases(swaps() if seed % 2 else products(), 1000 + seed, PER_TEST, verify_backends)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SOAK)
def test_random_cases_at_length(seed: int) -> None:
    """100 x 100 cases: 10,000."""
    random_cases(swaps() if seed % 2 else products(), 50_000 + seed, 2 * PER_TEST, verify_core)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SOAK)
def test_the_simulator_equals_a_plain_walk_at_length(seed: int) -> None:
    random_cases(swaps() if seed % 2 else products(), 90_000 + seed, 2 * PER_TEST, verify_backends)
