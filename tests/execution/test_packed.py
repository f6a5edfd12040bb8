"""Packed bfloat16 products on every way that this machine has: against float64, row by row, and by
identities. Experts on top of them: against a sum by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import write_model
from test_experts import ROUTINGS, inputs, make

from batchgen.errors import UserError
from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.compiled import is_compiled
from batchgen.exec.mlp import DenseMlp, SparseMlp
from batchgen.exec.packed import SWITCH, WAYS, PackedMatrix, pack, packed_linear, packed_way
from batchgen.exec.transformer import load_model

BEST = packed_way()
NAMES = [name for name, way in WAYS.items() if 0 < way <= BEST]
needs_packing = pytest.mark.skipif(not NAMES, reason="no packed products on this processor")
every_way = pytest.mark.parametrize("name", NAMES)
SIZES = st.sampled_from([1, 2, 15, 16, 31, 32, 33, 40, 64, 100, 150])


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_rounded(got: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor | float) -> None:
    """`got` is `exact` rounded to bfloat16 (a relative 2^-9, and 2^-9 more for a sum that fell on
    the other side), after float32 sums whose terms add up to `scale` in size."""
    assert got.dtype == torch.bfloat16
    allowed = exact.abs() * 2**-8 + torch.as_tensor(scale) * 2**-18
    assert ((got.double() - exact).abs() <= allowed).all()


@needs_packing
@every_way
@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 70), outputs=SIZES, in_size=SIZES, biased=st.booleans())
def test_a_product_is_that_of_float64(
    name: str, rows: int, outputs: int, in_size: int, biased: bool
) -> None:
    x, weight = values(rows, in_size), values(outputs, in_size, seed=1)
    bias = values(outputs, seed=2) if biased else None
    got = packed_linear(x, pack(weight, WAYS[name]), bias)
    exact, scale = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    assert_rounded(got, exact if bias is None else exact + bias.double(), scale + 4)


@needs_packing
@every_way
@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 70), width=SIZES, hidden=SIZES)
def test_a_gated_product_is_that_of_float64(name: str, rows: int, width: int, hidden: int) -> None:
    x, weight = values(rows, hidden), values(2 * width, hidden, seed=1)
    got = packed_linear(x, pack(weight, WAYS[name], gated=True))
    gate, up = (x.double() @ weight.double().T).chunk(2, -1)
    exact = torch.nn.functional.silu(gate) * up
    assert got.shape == exact.shape
    assert_rounded(got, exact, (1 + gate.abs()) * (1 + up.abs()) * hidden)


@needs_packing
@every_way
@pytest.mark.parametrize("shape", [(1, 1), (40, 33), (100, 64), (64, 100)])
def test_ones_read_the_weights_back(name: str, shape: tuple[int, int]) -> None:
    """Every weight is packed once and to its place: the identity gives it back bit by bit."""
    weight = values(*shape)
    got = packed_linear(torch.eye(shape[1]).bfloat16(), pack(weight, WAYS[name]))
    assert torch.equal(got, weight.T)


@needs_packing
@every_way
@pytest.mark.parametrize("gated", [False, True])
def test_a_row_is_bitwise_the_same_in_every_batch(name: str, gated: bool) -> None:
    x, weight = values(600, 200), pack(values(1000, 200, seed=1), WAYS[name], gated=gated)
    with torch_threads(1):
        whole = packed_linear(x, weight)
    for threads in (1, 2, 3):
        with torch_threads(threads):
            assert torch.equal(packed_linear(x, weight), whole)
            for begin, size in ((0, 1), (5, 1), (3, 2), (7, 16), (1, 31), (250, 33), (100, 300)):
                part = packed_linear(x[begin : begin + size], weight)
                assert torch.equal(part, whole[begin : begin + size]), (begin, size, threads)


@needs_packing
@every_way
def test_rows_may_lie_apart_and_have_more_dimensions(name: str) -> None:
    weight = pack(values(48, 64, seed=1), WAYS[name])
    wide = values(10, 160)
    expected = packed_linear(wide[:, 32:96].contiguous(), weight)
    assert torch.equal(packed_linear(wide[:, 32:96], weight), expected)
    assert torch.equal(packed_linear(wide[:, 32:96].T.contiguous().T, weight), expected)
    deep = wide[:, 32:96].contiguous().view(2, 5, 64)
    assert torch.equal(packed_linear(deep, weight), expected.view(2, 5, 48))
    assert packed_linear(wide[:0, 32:96], weight).shape == (0, 48)


@needs_packing
def test_a_packed_matrix_meets_nothing_else() -> None:
    weight = pack(values(64, 64), BEST)
    for x in (values(3, 96), inputs(3, 64)):
        with pytest.raises(ValueError, match="of 64 inputs met"):
            packed_linear(x, weight)
    with pytest.raises(RuntimeError):  # not the product of reordered weights
        torch.nn.functional.linear(values(3, 64), weight)
    assert weight.numel() == 64 * 64


def packed(mlp: SparseMlp, name: str) -> SparseMlp:
    way = WAYS[name]
    return dataclasses.replace(
        mlp,
        router=dataclasses.replace(mlp.router, weight=pack(mlp.router.weight, way)),
        gate_up=pack(mlp.gate_up, way, gated=True),
        down=pack(mlp.down, way),
    )


def by_hand(mlp: SparseMlp, x: torch.Tensor) -> torch.Tensor:
    """Token by token in float64, with the experts that the router names."""
    weights, experts = mlp.router(x)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for weight, expert in zip(weights[token], experts[token], strict=True):
            gate, up = (mlp.gate_up[expert].double() @ x[token].double()).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            out[token] += weight.double() * (mlp.down[expert].double() @ inner)
    return out


@needs_packing
@every_way
@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 70),
    hidden=st.sampled_from([1, 20, 32, 100, 128]),
    width=st.sampled_from([1, 7, 32, 40, 96]),
    experts=st.integers(1, 20),
    routing=st.sampled_from(sorted(ROUTINGS)),
    data=st.data(),
)
def test_experts_are_those_by_hand(
    name: str,
    tokens: int,
    hidden: int,
    width: int,
    experts: int,
    routing: str,
    data: st.DataObject,
) -> None:
    top_k = data.draw(st.integers(1, min(experts, 4)))
    config = ROUTINGS[routing]
    if config.groups > 1:
        experts *= 2 * config.groups
    top_k = min(top_k, experts // config.groups)
    mlp = make(hidden, width, experts, top_k, torch.bfloat16, config)
    x = inputs(tokens, hidden).bfloat16()
    if config.plain:  # in bfloat16 the two routers may order near ties differently
        scores = (x.double() @ mlp.router.weight.double().T).softmax(-1).sort(descending=True)
        if experts > 1:
            gaps = -scores.values.diff(dim=-1)[:, :top_k]
            x = x[(gaps > 0.02 * scores.values[:, : gaps.shape[1]]).all(-1)]
    if len(x):
        ours = packed(mlp, name)
        same = mlp if config.plain else dataclasses.replace(mlp, router=ours.router)
        torch.testing.assert_close(ours(x).double(), by_hand(same, x), atol=2e-2, rtol=2e-2)


@needs_packing
@every_way
@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (3, 2), (64, 6)])
def test_many_tokens_are_cut_and_some_experts_have_none(
    name: str, experts: int, top_k: int
) -> None:
    """More tokens than are taken at once; with few, most of 64 experts have no rows."""
    mlp = make(64, 40, experts, top_k, torch.bfloat16)
    ours, x = packed(mlp, name), inputs(1500, 64).bfloat16()
    whole = ours(x)
    for threads in (1, 2):
        with torch_threads(threads):
            assert torch.equal(ours(x), whole)
            for begin, size in ((0, 1), (511, 2), (100, 40), (700, 600)):
                part = ours(x[begin : begin + size])
                assert torch.equal(part, whole[begin : begin + size]), (begin, size, threads)
    torch.testing.assert_close(whole.float(), mlp._compiled(x).float(), atol=2e-2, rtol=2e-2)


@needs_packing
@every_way
def test_ties_and_broken_tokens(name: str) -> None:
    mlp = make(64, 48, 6, 2, torch.bfloat16, ROUTINGS["plain"])
    x = inputs(20, 64).bfloat16()
    level = dataclasses.replace(mlp.router, weight=torch.zeros(6, 64, dtype=torch.bfloat16))
    tied = dataclasses.replace(mlp, router=level)
    torch.testing.assert_close(
        packed(tied, name)(x).double(), by_hand(tied, x), atol=2e-2, rtol=2e-2
    )
    ours = packed(mlp, name)
    whole = ours(x)
    x[7, 3] = torch.nan
    others = torch.arange(20) != 7
    got = ours(x)
    assert got[7].isnan().all()
    assert torch.equal(got[others], whole[others])


@needs_packing
@every_way
@pytest.mark.parametrize("biased", [False, True])
def test_a_dense_mlp_is_that_of_plain_weights(
    name: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, name)
    arithmetic = Arithmetic(torch.bfloat16, "cpu")
    plain = DenseMlp(
        arithmetic=arithmetic,
        gate_up=values(80, 48, seed=1) / 7,
        down=values(48, 40, seed=2) / 7,
        gate_up_bias=values(80, seed=3) if biased else None,
        down_bias=values(48, seed=4) if biased else None,
    )
    ours = dataclasses.replace(
        plain,
        gate_up=arithmetic.pack(plain.gate_up, gated=not biased),
        down=arithmetic.pack(plain.down),
    )
    assert isinstance(ours.gate_up, PackedMatrix)
    assert ours.gate_up.way == WAYS[name]
    x = values(9, 48)
    torch.testing.assert_close(ours(x).float(), plain(x).float(), atol=5e-2, rtol=5e-2)


@needs_packing
@pytest.mark.parametrize("arch", ["qwen3", "qwen3-moe", "deepseek-v2", "gpt-oss"])
def test_a_model_in_bfloat16_is_packed(arch: str, tmp_path: Path) -> None:
    """Experts with biases, tied heads and every other dtype stay plain."""
    directory = write_model(tmp_path / "model", arch, tie_word_embeddings=arch == "qwen3")
    model = load_model(directory, dtype="bfloat16")
    assert isinstance(model.head, PackedMatrix) == (arch != "qwen3")
    for layer in model.layers:
        assert isinstance(layer.attention.out, PackedMatrix)
        assert isinstance(layer.mlp.gate_up, PackedMatrix) == (arch != "gpt-oss")
        assert isinstance(layer.mlp.down, PackedMatrix) == (arch != "gpt-oss")
    for dtype, exact in (("float32", False), ("float32", True), ("float16", False)):
        model = load_model(directory, dtype=dtype, exact=exact)
        assert not any(isinstance(weight, PackedMatrix) for weight in model._matrices())


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, way in WAYS.items():
        monkeypatch.setenv(SWITCH, name)
        assert packed_way() == min(way, BEST)
    monkeypatch.setenv(SWITCH, "fast")
    if is_compiled(torch.bfloat16):
        with pytest.raises(UserError, match="BATCHGEN_PRODUCTS is 'fast'"):
            Arithmetic(torch.bfloat16, "cpu")
    monkeypatch.setenv(SWITCH, "torch")
    weight = values(32, 32)
    assert Arithmetic(torch.bfloat16, "cpu").pack(weight) is weight
