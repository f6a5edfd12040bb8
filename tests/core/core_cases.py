"""The cases of `batchgen.check`, in one place for the tests of the core."""

from __future__ import annotations

from batchgen.check.case import Case, Row, staged
from batchgen.check.loads import (
    LARGE_HOST,
    NAMES,
    SPAN_PS,
    TROUBLES,
    pairs,
    parts_of,
    products,
    random_case,
    simpler,
    swaps,
)
from batchgen.check.run import Outcome, build, run, schedule, schedule_case
from batchgen.runtime.core import MAX_PASSES
from batchgen.sequence import Status

__all__ = [
    "LARGE_HOST",
    "MAX_PASSES",
    "NAMES",
    "SPAN_PS",
    "TROUBLES",
    "Case",
    "Outcome",
    "Row",
    "Status",
    "build",
    "pairs",
    "parts_of",
    "products",
    "random_case",
    "run",
    "schedule",
    "schedule_case",
    "simpler",
    "staged",
    "swaps",
]
