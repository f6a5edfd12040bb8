"""The presets against an independent pass-by-pass scheduler: same passes, same times, to the ps."""

from __future__ import annotations

import dataclasses

import pytest
from core_cases import Case, cases, run
from core_naive import Naive
from hypothesis import HealthCheck, given, settings

from batchgen.sequence import Status

RULES = ("vllm", "orca", "static")


def agree(case: Case) -> None:
    case = dataclasses.replace(case, engines=1, ranks=1, host_pages=0)
    wanted = Naive(case, case.preset).run()
    outcome = run(case)
    assert outcome.passes()[0] == wanted.passes
    first, end = outcome.times()
    assert end == [request.end for request in wanted.requests]
    assert first == [request.first for request in wanted.requests]
    assert outcome.table.preemptions.tolist() == [request.drops for request in wanted.requests]
    failed = [status == Status.FAILED for status in outcome.table.status]
    assert failed == [request.failed for request in wanted.requests]
    assert all(code == "capacity" for row, code in outcome.reasons.items() if failed[row])


@pytest.mark.parametrize("rule", RULES)
def test_presets_equal_the_naive_scheduler(rule: str) -> None:
    @settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
    @given(cases(presets=(rule,), prefix=False, most_rows=20))
    def check(case: Case) -> None:
        agree(case)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_presets_equal_the_naive_scheduler_at_length(rule: str) -> None:
    @settings(deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))
    @given(cases(presets=(rule,), prefix=False, most_rows=30))
    def check(case: Case) -> None:
        agree(case)

    check()
