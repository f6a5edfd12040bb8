"""The smallest case that fails as a given one does. It knows nothing of why it fails."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchgen.check.case import Case
from batchgen.check.loads import simpler


def smallest(case: Case, fails: Callable[[Case], bool], *, limit_s: float = 60.0) -> Case:
    """A case that fails and has no simpler neighbour that does, or what was reached in time."""
    end = time.monotonic() + limit_s
    again = True
    while again:
        again = False
        for candidate in simpler(case):
            if time.monotonic() > end:
                return case
            if fails(candidate):
                case, again = candidate, True
                break
    return case
