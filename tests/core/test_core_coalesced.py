"""Coalesced stepping against the reference mode of one pass per step: equal, to the picosecond."""

from __future__ import annotations

import pytest
from core_cases import PRESETS, Case, cases, run
from hypothesis import HealthCheck, given, settings

COMMON = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
DEVICES = ("slow", "lost", "back", "notice")
TROUBLES = ("cancel", "row_failed", "pool_short", "plan")


def assert_equal(case: Case) -> None:
    fast, slow = run(case), run(case, reference=True)
    got, wanted = fast.everything(), slow.everything()
    for name in wanted:
        assert got[name] == wanted[name], name
    assert fast.simulation.events <= slow.simulation.events


@pytest.mark.parametrize("preset", PRESETS)
def test_coalesced_equals_reference(preset: str) -> None:
    @COMMON
    @given(cases(presets=(preset,), prefix=False))
    def check(case: Case) -> None:
        assert_equal(case)

    check()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kinds", [DEVICES, TROUBLES], ids=["devices", "troubles"])
def test_coalesced_equals_reference_in_trouble(preset: str, kinds: tuple[str, ...]) -> None:
    @COMMON
    @given(cases(presets=(preset,), kinds=kinds, prefix=False))
    def check(case: Case) -> None:
        assert_equal(case)

    check()


def test_coalesced_equals_reference_with_shared_prefixes() -> None:
    @COMMON
    @given(cases(presets=("vllm",), kinds=DEVICES + TROUBLES, prefix=True))
    def check(case: Case) -> None:
        assert_equal(case)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("prefix", [False, True])
def test_coalesced_equals_reference_at_length(preset: str, prefix: bool) -> None:
    @settings(deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))
    @given(cases(presets=(preset,), kinds=DEVICES + TROUBLES, prefix=prefix, most_rows=30))
    def check(case: Case) -> None:
        assert_equal(case)

    check()
