"""Admission beside what rows may still produce: time alone lets nobody in."""

from __future__ import annotations

import random

import pytest
from core_cases import parts_of, products, random_case, swaps
from core_verify import verify_core
from hypothesis import given
from hypothesis import strategies as st

from batchgen.check.loads import scarcer
from batchgen.memory.pool import pages_for
from batchgen.policy.admission import FitsRest

COMPOSITIONS = [one for one in swaps() + products() if parts_of(one)["admission"] == "fits-rest"]
TROUBLES = ((), ("slow",), ("slow", "lost", "back", "cancel", "plan"))


def scarce(seed: int) -> object:
    rng = random.Random(seed)
    case = random_case(rng, rng.choice(COMPOSITIONS), kinds=rng.choice(TROUBLES))
    return scarcer(case, rng.choice((0.2, 0.4, 0.7))) if rng.random() < 0.6 else case


# 5557: a page that `free` had given to a row's next token was kept for it a second time.
@pytest.mark.parametrize("first", [5540, 20_000, 30_000])
def test_long_steps_admit_as_passes_do(first: int) -> None:
    for seed in range(first, first + 60):
        verify_core(scarce(seed))  # type: ignore[arg-type]


class _Rank:
    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens


@given(
    ratio=st.floats(0, 1),
    most=st.integers(1, 60),
    page=st.sampled_from((1, 2, 7, 64)),
    prompt=st.integers(1, 200),
    budget=st.integers(1, 200),
)
def test_a_row_and_what_is_kept_for_it_never_shrink(
    ratio: float, most: int, page: int, prompt: int, budget: int
) -> None:
    part = FitsRest(FitsRest.Config(ratio=ratio, most_tokens=most))
    whole, before = prompt + budget, 0
    for computed in range(prompt, whole):
        leased = pages_for(computed + 1, page)
        kept = part._kept(_Rank(page), computed, whole - computed, computed + 1)  # type: ignore[arg-type]
        assert leased + kept >= before
        assert leased + kept <= pages_for(whole, page)
        before = leased + kept
    rest = min(whole - prompt, most)
    first = part._kept(_Rank(page), prompt, whole - prompt, prompt)  # type: ignore[arg-type]
    assert first >= pages_for(prompt + int(ratio * rest), page) - pages_for(prompt, page)
