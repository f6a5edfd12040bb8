"""The presets against an independent pass-by-pass scheduler: same passes, same times, to the ps."""

from __future__ import annotations

import dataclasses
import random

import pytest
from core_cases import Case, random_case, run
from core_naive import Naive

from batchgen.sequence import Status

RULES = ("vllm", "orca", "static")


def agree(case: Case) -> None:
    rows = tuple(dataclasses.replace(row, stages=()) for row in case.rows)
    case = dataclasses.replace(
        case,
        rows=rows,
        engines=1,
        ranks=1,
        roles=(),
        devices=1,
        host_pages=0,
        depth=1,
        prefix=False,
    )
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


def many(rule: str, seed: int, count: int) -> None:
    for number in range(count):
        case = random_case(random.Random(seed * count + number), (rule, {}), kinds=())
        try:
            agree(case)
        except AssertionError as error:
            raise AssertionError(f"{case}\n{error}") from None


@pytest.mark.parametrize("rule", RULES)
def test_presets_equal_the_naive_scheduler(rule: str) -> None:
    many(rule, 1, 150)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_presets_equal_the_naive_scheduler_at_length(rule: str) -> None:
    many(rule, 2, 3000)
