"""Random hostile cases of each class: a few in `make test`, always the same ones; in `make soak`
new ones, for a time. A failure names the seed: `search(NAME, SEED)` draws the same case again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib import import_module
from random import Random

import pytest
from places import Reset
from trying import told

# Class -> cases in `make test`, chosen by what one costs.
FEW = {
    "usage": 20,
    "numbers": 20,
    "configs": 5,
    "paths": 10,
    "logs": 4,
    "environment": 3,
    "disk": 4,
    "signals": 4,
}
SOAK_S = float(os.environ.get("BATCHGEN_SOAK_S", "75"))
"""Seconds of `make soak` for each class: ten minutes together."""


def search(reset: Reset, name: str, seed: str) -> list[str]:
    """One case; what is wrong with it, if anything."""
    drawing = import_module(f"draw_{name}")
    place = reset.fresh()
    case = drawing.draw(Random(f"{name} {seed}"), place)
    ended, faults = place.faults(
        *case.argv, outputs=case.outputs, is_partial=case.is_partial, **case.task
    )
    if hasattr(drawing, "more"):
        faults += drawing.more(case, ended, place)
    return [f"{name}, seed {seed}: {told(ended, faults)}"] if faults else []


def a_while() -> Iterator[str]:
    """Seeds that were not tried before, until the time is over."""
    first = time.time_ns()
    until = time.monotonic() + SOAK_S
    number = 0
    while time.monotonic() < until:
        yield f"{first}-{number}"
        number += 1


@pytest.mark.parametrize("name", FEW)
def test_a_few_hostile_cases(name: str, reset: Reset) -> None:
    found = [line for seed in range(FEW[name]) for line in search(reset, name, str(seed))]
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 600)
@pytest.mark.parametrize("name", FEW)
def test_many_hostile_cases(name: str, reset: Reset) -> None:
    found = [line for seed in a_while() for line in search(reset, name, seed)]
    assert not found, "\n".join(found)
