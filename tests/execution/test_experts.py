"""Routed experts: compiled and torch agree, and a token is bitwise the same in every batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec.compiled import is_compiled
from batchgen.exec.layers import LARGE_GROUP, SparseMlp

pytestmark = pytest.mark.skipif(not is_compiled(torch.float32), reason="no C++ compiler here")


def make(
    hidden: int,
    width: int,
    experts: int,
    top_k: int,
    dtype: torch.dtype = torch.float32,
    norm_topk_prob: bool = True,
) -> SparseMlp:
    def weight(*shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(dtype)

    return SparseMlp(
        router=weight(experts, hidden),
        gate_up=weight(experts, 2 * width, hidden),
        down=weight(experts, hidden, width),
        experts_per_token=top_k,
        norm_topk_prob=norm_topk_prob,
        compiled=True,
    )


def inputs(tokens: int, hidden: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 70),
    hidden=st.sampled_from([1, 16, 20, 32, 100, 128]),
    width=st.sampled_from([1, 7, 32, 80, 96]),
    experts=st.integers(1, 20),
    data=st.data(),
)
def test_compiled_experts_are_those_of_torch(
    tokens: int, hidden: int, width: int, experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, min(experts, 4)))
    mlp = make(hidden, width, experts, top_k, norm_topk_prob=data.draw(st.booleans()))
    x = inputs(tokens, hidden)
    expected = dataclasses.replace(mlp, compiled=False)(x)
    torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_near_the_wide_ones(dtype: torch.dtype) -> None:
    mlp = make(96, 40, 1, 1, dtype)  # one expert: no near tie between two
    x = inputs(10, 96).to(dtype)
    wide = make(96, 40, 1, 1)
    wide = dataclasses.replace(
        wide, router=mlp.router.float(), gate_up=mlp.gate_up.float(), down=mlp.down.float()
    )
    torch.testing.assert_close(mlp(x).float(), wide(x.float()), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_bitwise_the_same_in_every_batch(threads: int, dtype: torch.dtype) -> None:
    mlp = make(100, 76, 8, 3, dtype)
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


def test_equal_experts_are_taken_in_order() -> None:
    mlp = make(32, 16, 6, 2, norm_topk_prob=False)
    mlp = dataclasses.replace(mlp, router=torch.zeros(6, 32))
    x = inputs(5, 32)
    expected = dataclasses.replace(mlp, compiled=False)(x)
    torch.testing.assert_close(mlp(x), expected, atol=1e-6, rtol=1e-5)


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
