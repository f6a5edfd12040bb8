"""Routed experts: compiled and torch agree, and a token is bitwise the same in every batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec.arithmetic import Arithmetic, ExactArithmetic
from batchgen.exec.compiled import is_compiled
from batchgen.exec.config import RoutingConfig
from batchgen.exec.mlp import LARGE_GROUP, SparseMlp
from batchgen.exec.routing import Router

needs_compiler = pytest.mark.skipif(not is_compiled(torch.float32), reason="no C++ compiler here")
ROUTINGS = {
    "plain": RoutingConfig(normalise=False),
    "normalised": RoutingConfig(),
    "groups": RoutingConfig(normalise=False, groups=4, groups_kept=2, scaling=1.5),
    "sigmoid": RoutingConfig(
        score="sigmoid", groups=4, groups_kept=2, group_top=2, scaling=2.5, correction=True
    ),
    "chosen": RoutingConfig(score="chosen-softmax"),
}


def make(
    hidden: int,
    width: int,
    experts: int,
    top_k: int,
    dtype: torch.dtype = torch.float32,
    routing: RoutingConfig = ROUTINGS["normalised"],
) -> SparseMlp:
    def weight(*shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(dtype)

    arithmetic = Arithmetic(dtype, "cpu")
    return SparseMlp(
        arithmetic=arithmetic,
        router=Router(
            config=routing,
            experts_per_token=top_k,
            arithmetic=arithmetic,
            weight=weight(experts, hidden),
            correction=torch.linspace(-1, 1, experts) if routing.correction else None,
        ),
        gate_up=weight(experts, 2 * width, hidden),
        down=weight(experts, hidden, width),
    )


def in_torch(mlp: SparseMlp) -> SparseMlp:
    arithmetic = Arithmetic(torch.float64, "cpu")  # the library has no such dtype
    assert not arithmetic.compiled
    return dataclasses.replace(mlp, arithmetic=arithmetic)


def inputs(tokens: int, hidden: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 70),
    hidden=st.sampled_from([1, 16, 20, 32, 100, 128]),
    width=st.sampled_from([1, 7, 32, 80, 96]),
    experts=st.integers(1, 20),
    routing=st.sampled_from(sorted(ROUTINGS)),
    data=st.data(),
)
def test_compiled_experts_are_those_of_torch(
    tokens: int, hidden: int, width: int, experts: int, routing: str, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, min(experts, 4)))
    config = ROUTINGS[routing]
    if config.groups > 1:
        experts *= 2 * config.groups
    mlp = make(hidden, width, experts, min(top_k, experts // config.groups), routing=config)
    x = inputs(tokens, hidden)
    expected = in_torch(mlp)(x)
    torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_near_the_wide_ones(dtype: torch.dtype) -> None:
    mlp = make(96, 40, 1, 1, dtype)  # one expert: no near tie between two
    x = inputs(10, 96).to(dtype)
    wide = make(96, 40, 1, 1)
    wide = dataclasses.replace(
        wide,
        router=dataclasses.replace(wide.router, weight=mlp.router.weight.float()),
        gate_up=mlp.gate_up.float(),
        down=mlp.down.float(),
    )
    torch.testing.assert_close(mlp(x).float(), wide(x.float()), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("routing", sorted(ROUTINGS))
@pytest.mark.parametrize(
    ("compiled", "dtype"),
    [
        pytest.param(True, torch.float32, marks=needs_compiler),
        pytest.param(True, torch.bfloat16, marks=needs_compiler),
        (False, torch.float32),
    ],
)
def test_a_token_is_bitwise_the_same_in_every_batch(
    compiled: bool, dtype: torch.dtype, routing: str, threads: int
) -> None:
    mlp = make(100, 76, 16, 3, dtype, ROUTINGS[routing])
    exact = ExactArithmetic(dtype if compiled else torch.float64, "cpu")
    router = dataclasses.replace(mlp.router, arithmetic=exact)
    mlp = dataclasses.replace(mlp, arithmetic=exact, router=router)
    x = inputs(60, 100).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = mlp(x)
        for size in (1, 2, 3, 7, 20, 33):
            for begin in range(0, 60 - size, 11):
                part = mlp(x[begin : begin + size])
                assert torch.equal(part, whole[begin : begin + size]), (size, begin)
        backwards = mlp(x.flip(0)).flip(0)
        assert torch.equal(backwards, whole)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_equal_experts_are_taken_in_order() -> None:
    mlp = make(32, 16, 6, 2, routing=ROUTINGS["plain"])
    mlp = dataclasses.replace(
        mlp, router=dataclasses.replace(mlp.router, weight=torch.zeros(6, 32))
    )
    x = inputs(5, 32)
    assert mlp.router(x)[1].tolist() == [[0, 1]] * 5
    expected = in_torch(mlp)(x)
    torch.testing.assert_close(mlp(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("routing", ["groups", "sigmoid"])
def test_only_the_best_groups_are_chosen_from(routing: str) -> None:
    """By brute force: the groups by falling merit, then the experts of the kept ones."""
    config = ROUTINGS[routing]
    router = make(24, 8, 16, 3, routing=config).router
    x = inputs(50, 24)
    weights, experts = router(x)
    logits = x @ router.weight.T
    scores = torch.sigmoid(logits) if config.score == "sigmoid" else torch.softmax(logits, -1)
    for token in range(50):
        ranks = scores[token] + (0 if router.correction is None else router.correction)
        groups = [ranks[g * 4 : g * 4 + 4] for g in range(4)]
        merits = [float(g.sort(descending=True).values[: config.group_top].sum()) for g in groups]
        kept = sorted(range(4), key=lambda g: -merits[g])[:2]
        allowed = [e for e in range(16) if e // 4 in kept]
        best = sorted(allowed, key=lambda e: -float(ranks[e]))[:3]
        assert experts[token].tolist() == best
        plain = scores[token, best]
        plain = plain / plain.sum() if config.normalise else plain
        torch.testing.assert_close(weights[token], plain * config.scaling)


def test_sigmoids_that_are_all_zero_make_no_nan() -> None:
    router = make(8, 4, 16, 3, routing=ROUTINGS["sigmoid"]).router
    router = dataclasses.replace(router, weight=torch.full((16, 8), -100.0))
    weights, _ = router(torch.ones(2, 8))
    assert weights.tolist() == [[0.0] * 3] * 2


@needs_compiler
def test_a_broken_token_harms_no_other() -> None:
    mlp = make(64, 48, 4, 2)
    x = inputs(20, 64)
    whole = mlp(x)
    x[7, 3] = torch.nan
    got = mlp(x)
    assert got[7].isnan().all()
    others = torch.arange(20) != 7
    assert torch.equal(got[others], whole[others])


def test_large_groups_of_bfloat16_go_to_torch() -> None:
    mlp = make(64, 48, 4, 2, torch.bfloat16)
    tokens = 2 * LARGE_GROUP
    assert mlp._prefers_torch(inputs(tokens, 64).bfloat16())
    assert not mlp._prefers_torch(inputs(tokens - 1, 64).bfloat16())
    assert not mlp._prefers_torch(inputs(tokens, 64))
