"""The fused small operations of bfloat16 against the same in torch, and a token alone against it in
company."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import FAMILIES, pass_rows, write_model

from batchgen.exec import fused
from batchgen.exec.arena import KvArena
from batchgen.exec.compiled import SWITCH, is_compiled
from batchgen.exec.config import KvLayout
from batchgen.exec.layers import add_rms_norm, rms_norm
from batchgen.exec.rotary import apply_rope
from batchgen.exec.transformer import load_model

pytestmark = pytest.mark.skipif(not is_compiled(torch.bfloat16), reason="no C++ compiler here")
EPS = 1e-6
ONE_ROUNDING = 2**-7  # relative: a value at the border of two bfloat16 may become either


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).bfloat16()


def close(got: torch.Tensor, right: torch.Tensor, atol: float = 0.0) -> None:
    torch.testing.assert_close(got, right, rtol=ONE_ROUNDING, atol=atol)


def in_torch(monkeypatch: pytest.MonkeyPatch, work: Any) -> Any:
    """What `work` gives without the library."""
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "0")
        return work()


@pytest.mark.parametrize("width", [1, 15, 16, 80, 512, 1000])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_norms_equal_those_of_torch(
    width: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, added = values(9, width, scale=scale), values(9, width, seed=1, scale=scale)
    weight = values(width, seed=2)
    close(rms_norm(x, weight, EPS), in_torch(monkeypatch, lambda: rms_norm(x, weight, EPS)))
    got = add_rms_norm(x, added, weight, EPS)
    right = in_torch(monkeypatch, lambda: add_rms_norm(x, added, weight, EPS))
    assert torch.equal(got[0], right[0])  # one sum, rounded once: the same bits
    close(got[1], right[1])


def test_norms_of_parts_of_wider_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As latent attention splits them, and heads of queries."""
    latent, heads = values(7, 56)[:, :40], values(7, 6, 24)[:, 1:3]
    for x in (latent, heads, values(3, 40).T):
        weight = values(x.shape[-1], seed=3)
        right = in_torch(monkeypatch, lambda x=x, weight=weight: rms_norm(x, weight, EPS))
        close(rms_norm(x, weight, EPS), right)


def arena(kv_heads: int, head_dim: int, page_tokens: int) -> KvArena:
    layout = KvLayout(layers=2, parts=2, heads=kv_heads, head_dim=head_dim)
    pages = -(-24 // page_tokens)
    kv = KvArena("hbm", pages, layout, page_tokens=page_tokens, dtype=torch.bfloat16)
    kv.storage.copy_(values(*kv.storage.shape, seed=4))
    return kv


def batch(tokens: int, head_dim: int, page_tokens: int) -> Any:
    """What `place_qkv` reads of a batch: tokens at scattered places."""
    places = torch.randperm(24, generator=torch.Generator().manual_seed(5))[:tokens]
    angles = torch.arange(tokens)[:, None, None] * torch.linspace(1, 0.01, head_dim // 2)
    return SimpleNamespace(
        pages=places // page_tokens,
        offsets=places % page_tokens,
        cos=angles.cos().contiguous(),
        sin=angles.sin().contiguous(),
    )


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 24),
    heads=st.integers(1, 6),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 16, 64, 80, 96, 112, 128]),
    page_tokens=st.sampled_from([1, 8, 16, 64]),
    normed=st.booleans(),
    layer=st.integers(0, 1),
)
def test_queries_and_kv_equal_those_of_torch(
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_tokens: int,
    normed: bool,
    layer: int,
) -> None:
    qkv = values(tokens, heads + 2 * kv_heads, head_dim, seed=6)
    norms = (values(head_dim, seed=7), values(head_dim, seed=8)) if normed else None
    one = batch(tokens, head_dim, page_tokens)
    kv, right_kv = arena(kv_heads, head_dim, page_tokens), arena(kv_heads, head_dim, page_tokens)
    got = fused.place_qkv(qkv, norms, EPS, kv, layer, one)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
    if norms is not None:  # in float64, rounded where rms_norm rounds
        q, k = (plain_norm(x, weight) for x, weight in zip((q, k), norms, strict=True))
    q, k = apply_rope(q, one.cos, one.sin), apply_rope(k, one.cos, one.sin)
    right_kv.write(layer, one.pages, one.offsets, k, v)
    # A rotation subtracts: what one rounding of an element weighs there is absolute.
    atol = 2**-7 * float(max(q.abs().max(), k.abs().max())) if normed else 1e-6
    close(got, q, atol)
    close(kv.storage, right_kv.storage, atol)
    untouched = torch.ones_like(kv.storage, dtype=torch.bool)
    untouched[one.pages, layer, :, :, one.offsets] = False
    assert torch.equal(kv.storage[untouched], right_kv.storage[untouched])


def plain_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return wide.to(x.dtype) * weight


def test_a_token_is_bitwise_the_same_alone_and_on_any_threads() -> None:
    tokens, heads, kv_heads, head_dim = 300, 6, 2, 96
    x, weight = values(tokens, 960), values(960, seed=1)
    qkv = values(tokens, heads + 2 * kv_heads, head_dim)
    norms = values(head_dim, seed=2), values(head_dim, seed=3)
    angles = torch.arange(tokens)[:, None, None] * torch.linspace(1, 0.01, head_dim // 2)
    layout = KvLayout(layers=1, parts=2, heads=kv_heads, head_dim=head_dim)
    before = torch.get_num_threads()
    seen = []
    try:
        for threads, step in ((1, tokens), (2, tokens), (3, tokens), (2, 1)):
            torch.set_num_threads(threads)
            kv = KvArena("hbm", tokens, layout, page_tokens=1, dtype=torch.bfloat16)
            parts = []
            for start in range(0, tokens, step):
                cut = slice(start, start + step)
                one: Any = SimpleNamespace(
                    pages=torch.arange(tokens)[cut],
                    offsets=torch.zeros(step, dtype=torch.int64),
                    cos=angles[cut].cos(),
                    sin=angles[cut].sin(),
                )
                q = fused.place_qkv(qkv[cut], norms, EPS, kv, 0, one)
                parts.append(torch.cat((rms_norm(x[cut], weight, EPS), q.flatten(1)), 1))
            seen.append((torch.cat(parts), kv.storage))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert torch.equal(other[0], seen[0][0])
        assert torch.equal(other[1], seen[0][1])


def test_what_is_not_bfloat16_stays_in_torch() -> None:
    for dtype in (torch.float32, torch.float16, torch.float64):
        assert not fused.is_fused(torch.empty(2, 2, dtype=dtype))
    assert fused.is_fused(values(2, 2))


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_model_gives_nearly_the_same_logits_as_in_torch(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / arch, arch)
    ids = [(7 * i + 3) % 60 for i in range(45)]
    rows = pass_rows([(0, 0, 45)], 0, ids)

    def logits(dtype: str) -> torch.Tensor:
        model = load_model(path, dtype=dtype)
        kind = torch.float32 if dtype == "float32" else torch.bfloat16
        kv = KvArena("hbm", 6, model.config.kv_layout, page_tokens=8, dtype=kind)
        kv.reserve(0, 45)
        return model.forward(kv, rows)

    exact, got = logits("float32"), logits("bfloat16")
    right = in_torch(monkeypatch, lambda: logits("bfloat16"))
    # As far from float32 as torch is in this dtype, or nearly. The median: a token whose router is
    # undecided takes another expert for the smallest reason.
    errors, usual = ((x - exact).norm(dim=1).median() for x in (got, right))
    assert errors <= 1.3 * usual
