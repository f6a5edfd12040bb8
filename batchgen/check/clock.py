"""Another clock and other dice: what a part must not notice. For the time of a run only."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

CLOCKS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")
FAR_S = 100_000


@contextmanager
def another_world(seed: int, modules: Sequence[str] = ()) -> Iterator[None]:
    """Clocks jump, global random generators are seeded anew; all as before afterwards.

    modules: names of modules that may have taken clock functions by name.
    """
    dice = random.Random(seed)
    fakes: dict[int, Callable[[], Any]] = {}
    for name in CLOCKS:
        for suffix, unit in (("", 1), ("_ns", 10**9)):
            real = getattr(time, name + suffix)
            fakes[id(real)] = _jumping(real, dice, unit)
    places = [time, *(sys.modules[name] for name in modules if name in sys.modules)]
    taken = [
        (place, name, value)
        for place in places
        for name, value in list(vars(place).items())
        if id(value) in fakes
    ]
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    for place, name, value in taken:
        setattr(place, name, fakes[id(value)])
    try:
        yield
    finally:
        for place, name, value in taken:
            setattr(place, name, value)
        random.setstate(before[0])
        np.random.set_state(before[1])


def _jumping(real: Callable[[], Any], dice: random.Random, unit: int) -> Callable[[], Any]:
    return lambda: real() + type(real())(dice.random() * FAR_S * unit)
