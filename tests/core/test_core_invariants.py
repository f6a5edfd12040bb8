"""Random loads and troubles in simulated time: the invariants hold after every event."""

from __future__ import annotations

import pytest
from core_cases import PRESETS, Case, Row, cases, run
from core_invariants import Invariants
from hypothesis import HealthCheck, given, settings

from batchgen.sequence import Status

TROUBLES = ("slow", "lost", "back", "notice", "cancel", "row_failed", "pool_short", "plan")
CODES = {"cancelled", "bad", "capacity", "no_device"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("reference", [False, True], ids=["coalesced", "reference"])
def test_invariants_after_every_event(preset: str, reference: bool) -> None:
    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(cases(presets=(preset,), scarce=True, kinds=TROUBLES))
    def check(case: Case) -> None:
        ends_by_name(case, reference=reference)

    check()


def ends_by_name(case: Case, *, reference: bool = False) -> None:
    outcome = run(case, reference=reference, checker=Invariants(case))
    for index, row in enumerate(case.rows):
        done = outcome.table.status[index] == Status.DONE
        reason = outcome.reasons[index]
        if done:
            assert outcome.table.produced[index] == row.output
            assert reason == ("length" if row.output == row.budget else "stop")
        else:
            assert outcome.table.status[index] == Status.FAILED
            assert reason in CODES
    for engine in outcome.simulation.runtime.cluster.engines:
        assert engine.host.used == 0
        assert all(rank.pool.used == 0 for rank in engine.ranks)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("host", [0, 8, 10_000])
def test_rows_too_large_fail_by_name_and_spare_the_rest(preset: str, host: int) -> None:
    """Larger than the pool; outgrowing the pool alone; just fitting; and a small one behind."""
    rows = (
        Row(prompt=100, budget=5, output=5),  # 25 pages of 8
        Row(prompt=10, budget=90, output=90),  # 3 pages, then far more than 8
        Row(prompt=27, budget=5, output=5),  # 7 pages, then 8
        Row(prompt=1, budget=1, output=1),
    )
    for seqs in (1, 4):
        case = Case(preset=preset, rows=rows, hbm_pages=8, host_pages=host, seqs=seqs)
        outcome = run(case, checker=Invariants(case))
        assert outcome.reasons == {0: "capacity", 1: "capacity", 2: "length", 3: "length"}


def test_a_row_larger_than_the_watermark_fails_by_name() -> None:
    case = Case(
        preset="vllm",
        rows=(Row(prompt=30, budget=2, output=2), Row(prompt=4, budget=2, output=2)),
        hbm_pages=8,
        overrides={"admission.watermark": "0.5"},
    )
    assert run(case, checker=Invariants(case)).reasons == {0: "capacity", 1: "length"}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_invariants_at_length(preset: str) -> None:
    @settings(deadline=None, max_examples=1500, suppress_health_check=list(HealthCheck))
    @given(cases(presets=(preset,), scarce=True, kinds=TROUBLES, most_rows=30))
    def check(case: Case) -> None:
        ends_by_name(case)

    check()
