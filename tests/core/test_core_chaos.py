"""Random event streams of a backend without a clock: invariants, liveness, replay."""

from __future__ import annotations

import dataclasses

import pytest
from core_cases import PRESETS, Case, cases
from core_chaos import Chaos
from core_invariants import Invariants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.log import encode
from batchgen.sequence import Status


def survive(case: Case, seed: int) -> Chaos:
    # Six troubles of any kind, a changed plan among them.
    case = dataclasses.replace(case, troubles=(("plan", 0, 0, 0),) * 6)
    chaos = Chaos(case, seed, Invariants(case))
    chaos.run()
    assert chaos.runtime.unfinished == 0
    assert sorted(chaos.reasons) == list(range(len(case.rows)))
    for row, one in enumerate(case.rows):
        assert chaos.table.produced[row] == chaos.tokens[row] or (
            chaos.table.status[row] == Status.FAILED
        )
        if chaos.reasons[row] == "stop":
            assert chaos.tokens[row] == one.output
        else:
            assert chaos.reasons[row] in ("capacity", "cancelled", "bad")
    return chaos


@pytest.mark.parametrize("preset", PRESETS)
def test_random_event_streams(preset: str) -> None:
    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(cases(presets=(preset,), scarce=True), st.integers(0, 2**32))
    def check(case: Case, seed: int) -> None:
        survive(case, seed)

    check()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(cases(scarce=True), st.integers(0, 2**32))
def test_the_same_events_get_the_same_actions(case: Case, seed: int) -> None:
    first = survive(case, seed)
    again = Chaos(case, seed).runtime
    for entry in first.entries:
        assert encode(again.on(entry.event, entry.t)) == encode(entry.actions)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_random_event_streams_at_length(preset: str) -> None:
    @settings(deadline=None, max_examples=3000, suppress_health_check=list(HealthCheck))
    @given(cases(presets=(preset,), scarce=True, most_rows=30), st.integers(0, 2**32))
    def check(case: Case, seed: int) -> None:
        survive(case, seed)

    check()
