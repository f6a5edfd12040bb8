"""Compositions by seed that stay when parts and presets are added.

A choice by position changes with every new part, and tests that hold seeds of rare cases lose them.
Here each candidate has a number of its own by seed and the largest wins, so that a new one takes
only its share of the seeds (rendezvous hashing).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

from core_cases import parts_of, swaps

from batchgen.check.loads import Composition
from batchgen.policy.presets import PARTS

T = TypeVar("T")


def steady(seed: int, choices: Sequence[T]) -> T:
    """The choice of this seed. What differs must differ in its text."""
    return max(choices, key=lambda one: blake2b(f"{seed} {one}".encode()).digest())


def steady_product(seed: int) -> Composition:
    """Any part in each slot; as in `products`, no oracle."""
    parts = {
        slot: steady(seed, [f"{slot}.{part}" for part in parts if part != "oracle"])
        for slot, parts in PARTS.items()
    }
    return "vllm", {f"{slot}.part": part.partition(".")[2] for slot, part in parts.items()}


def steady_composition(seed: int, **wanted: str) -> Composition:
    """A swap or, of every third seed, a product; `wanted`: the parts that some slots must have."""
    if seed % 3 == 0:
        name, overrides = steady_product(seed)
        return name, overrides | {f"{slot}.part": part for slot, part in wanted.items()}
    fit = [one for one in swaps() if wanted.items() <= parts_of(one).items()]
    return steady(seed, fit)
