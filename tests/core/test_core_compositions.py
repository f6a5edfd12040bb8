"""All compositions: every property of the core holds for every accepted composition.

Pairs are four presets with any two slots swapped, swaps all presets with one: all of them run
once, and more swaps are drawn at random, as products are, all parts of all slots.
"""

from __future__ import annotations

import itertools

import pytest
from core_cases import pairs, parts_of, products, swaps
from core_verify import random_cases, random_load, verify_backends, verify_core

from batchgen.policy.presets import PARTS, build_policy, find_preset

PAIRS = pairs()
SWAPS = swaps()
PER_TEST = 50
CHUNKS = range(10)
SOAK = range(100)


def test_pairs_leave_nothing_out() -> None:
    """Any two parts of different slots are together in one of them, and none is refused."""
    together = set[tuple[str, ...]]()
    for name, overrides in PAIRS:
        build_policy(find_preset(name), overrides)
        parts = (f"{slot}.{part}" for slot, part in parts_of((name, overrides)).items())
        together |= set(itertools.combinations(parts, 2))
    for one, two in itertools.combinations(PARTS, 2):
        for part, other in itertools.product(PARTS[one], PARTS[two]):
            known = "oracle" not in (part, other)
            assert ((f"{one}.{part}", f"{two}.{other}") in together) == known


@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_pair(chunk: int) -> None:
    """1,552 pairs, one random load each; 20 in `make soak`."""
    for number in range(chunk, len(PAIRS), len(CHUNKS)):
        random_load(PAIRS[number], number, verify_core)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_swap(chunk: int) -> None:
    """Every preset with every single slot swapped: 288, one random load each."""
    for number in range(chunk, len(SWAPS), len(CHUNKS)):
        random_load(SWAPS[number], 300_000 + number, verify_core)


@pytest.mark.parametrize("seed", CHUNKS)
def test_random_cases(seed: int) -> None:
    """10 x 30 cases, so that there are 1,006 in all."""
    random_cases(products() if seed % 2 else swaps(), seed, 30, verify_core)


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


@pytest.mark.slow
@pytest.mark.parametrize("chunk", SOAK)
def test_every_pair_at_length(chunk: int) -> None:
    """1,552 x 20 loads."""
    for number in range(chunk, 20 * len(PAIRS), len(SOAK)):
        random_load(PAIRS[number // 20], 70_000 + number, verify_core)
