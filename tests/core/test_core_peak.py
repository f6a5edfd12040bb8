"""Peaks of KV pages inside steps of many passes: those that steps of one pass each would show."""

from __future__ import annotations

import random

import pytest
from core_cases import NAMES, Case, Row, random_case, run

from batchgen import actions as act
from batchgen.events import Landed


def peaks(case: Case, *, reference: bool) -> tuple[list[int], bool]:
    """The peak of each engine, and whether no copy ever freed pages."""
    most = [0] * case.engines
    still = [True]

    def look(runtime, entry) -> None:  # type: ignore[no-untyped-def]
        if isinstance(entry.event, Landed):
            engine = entry.event.engine
            most[engine] = max(most[engine], runtime.kv_pages(engine))
        if any(isinstance(action, act.Copy | act.Switch) for action in entry.actions):
            still[0] = False

    run(case, reference=reference, checker=look)
    return most, still[0]


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("overrides", [{}, {"admission.part": "worst-case"}])
def test_long_steps_hide_no_peak_and_invent_none(preset: str, overrides: dict[str, str]) -> None:
    rng = random.Random(f"{preset} {overrides}")
    moved = 0
    for _ in range(40):
        case = random_case(rng, (preset, overrides), kinds=())
        (long, still), (short, _) = (peaks(case, reference=way) for way in (False, True))
        if still:
            assert long == short, case
        else:  # a copy that lands inside a step frees pages, and growth until then is not seen
            moved += 1
            assert all(a <= b for a, b in zip(long, short, strict=True)), case
    assert moved < 40


def test_rows_that_end_early_grow_no_more() -> None:
    """Nobody waits, so one step goes on to the last end; the short rows are gone by then."""
    rows = (*[Row(prompt=4, budget=300, output=20)] * 10, Row(prompt=4, budget=300, output=300))
    case = Case(preset="vllm", rows=rows, hbm_pages=4000, seqs=64)
    (seen, _), (true, _) = (peaks(case, reference=way) for way in (False, True))
    each = -(-(4 + 19) // 4)
    assert seen == true == [max(11 * each, -(-(4 + 299) // 4))]
