"""Attention of chunks over pages against the reference: prefixes, ragged and empty chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from batchgen.exec.kernels import prefill_attention as module
from batchgen.exec.kernels.launching import HOPPER, tried
from batchgen.exec.kernels.prefill_attention import (
    AHEAD,
    prefill_attention,
    prefill_attention_reference,
    prefill_attention_work,
)
from batchgen.exec.kernels.prefill_tiles import prefill_tiles

Chunks = list[tuple[int, int]]
"""Tokens before and in each chunk."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    page: int = 16
    value_dim: int | None = None
    window: int = 0
    sinks: bool = False


def filled(
    shape: Shape, chunks: Chunks, rng: np.random.Generator, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Storage with NaN where there is no token, and tables: chunk c has slot c, columns behind
    its pages are out of bounds."""
    counts = [-(-(start + length) // shape.page) for start, length in chunks]
    parts = 1 if shape.value_dim else 2
    size = (sum(counts) + 1, 2, parts, shape.kv_heads, shape.page, shape.head_dim)
    storage = torch.full(size, math.nan, dtype=dtype, device=device)
    tables = np.full((len(chunks), max(counts) + 1), 2**30, dtype=np.int32)
    order = rng.permutation(size[0])
    for slot, (count, (start, length)) in enumerate(zip(counts, chunks, strict=True)):
        pages, order = order[:count], order[count:]
        tables[slot, :count] = pages
        for column, page in enumerate(pages):
            held = min(start + length - column * shape.page, shape.page)
            kept = rng.standard_normal((2, parts, shape.kv_heads, held, shape.head_dim))
            storage[int(page), :, :, :, :held] = torch.tensor(kept, dtype=dtype, device=device)
    return storage, torch.tensor(tables, device=device)


def check(shape: Shape, chunks: Chunks, dtype: torch.dtype, device: torch.device) -> None:
    rng = np.random.default_rng(sum(map(sum, chunks)))
    storage, tables = filled(shape, chunks, rng, dtype, device)
    order = rng.permutation(len(chunks))  # of the chunks among the arguments
    lengths = np.array([length for _, length in chunks])
    firsts = 3 + np.cumsum(lengths) - lengths + np.arange(len(chunks))  # a token between chunks
    numbers = {
        "slots": order,
        "starts": np.array([start for start, _ in chunks])[order],
        "firsts": firsts[order],
        "lengths": lengths[order],
    }
    given = {
        name: torch.tensor(values.astype(np.int32), device=device)
        for name, values in numbers.items()
    }
    num_tokens = int(firsts[-1] + lengths[-1]) + 2
    q = torch.randn(num_tokens, shape.heads, shape.head_dim, dtype=dtype, device=device)
    sinks = torch.randn(shape.heads, device=device) if shape.sinks else None
    how = {"scale": 0.3, "window": shape.window, "sinks": sinks, "value_dim": shape.value_dim}
    dim = shape.value_dim or shape.head_dim
    out = torch.full((num_tokens, shape.heads, dim), math.nan, dtype=dtype, device=device)
    bounds = {"num_tokens": int(lengths.sum()), "max_length": int(lengths.max())}
    found = prefill_attention(q, storage, 1, tables, **given, **bounds, **how, out=out)
    assert found is out
    wanted = prefill_attention_reference(q, storage, 1, tables, **given, **how)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    inside = np.zeros(num_tokens, dtype=bool)
    for first, length in zip(firsts, lengths, strict=True):
        inside[first : first + length] = True
        part = slice(int(first), int(first + length))
        error = (out[part].float() - wanted[part]).norm()
        assert error <= tolerance * wanted[part].norm(), (first, length, shape)
    assert out[torch.tensor(~inside, device=device)].isnan().all()


RAGGED: Chunks = [(0, 1), (17, 5), (0, 0), (0, 21), (64, 9), (3, 1)]

SHAPES = [
    Shape(),
    Shape(page=64, heads=7, kv_heads=1, head_dim=24),
    Shape(page=1, heads=2, kv_heads=2),
    Shape(page=2, heads=16, kv_heads=1, sinks=True),
    Shape(page=64, heads=6, kv_heads=2, window=5, sinks=True),
    Shape(page=16, window=33),
    Shape(page=16, heads=5, kv_heads=1, head_dim=40, value_dim=24),
    Shape(page=64, heads=40, kv_heads=1, head_dim=48, value_dim=32, sinks=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_agrees_with_the_reference(
    shape: Shape, wide: torch.dtype, device: torch.device
) -> None:
    check(shape, RAGGED, wide, device)


def test_float32_is_tight(device: torch.device) -> None:
    check(Shape(sinks=True), [(10, 70), (0, 3)], torch.float32, device)


@pytest.mark.parametrize("seed", range(5))
def test_any_shape(seed: int, wide: torch.dtype, device: torch.device) -> None:
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 3))
    shape = Shape(
        heads=kv_heads * int(rng.integers(1, 17)),
        kv_heads=kv_heads,
        head_dim=int(rng.choice([16, 32, 80])),
        page=int(rng.choice([4, 16, 32, 64, 128])),
        window=int(rng.choice([0, 1, 20, 64])),
        sinks=bool(rng.integers(2)),
    )
    chunks = [(int(rng.integers(0, 150)), int(rng.integers(0, 25))) for _ in range(3)]
    check(shape, [*chunks, (0, 1)], wide, device)


@pytest.mark.parametrize("tiles", [(64, 32), (16, 64), (32, 16)], ids=str)
def test_any_tiles(tiles: tuple[int, int], wide: torch.dtype, device: torch.device) -> None:
    """Tiles are smaller than, as large as and larger than pages; loops without masks are taken."""
    chosen = {"BLOCK_M": tiles[0], "TILE": tiles[1], "num_warps": 4, "num_stages": 2}
    with tried("prefill_attention", chosen):
        check(Shape(page=32, heads=3, kv_heads=1), [(150, 30), (0, 65), (63, 2)], wide, device)


def test_many_chunks_find_their_blocks(
    monkeypatch: pytest.MonkeyPatch, wide: torch.dtype, device: torch.device
) -> None:
    """More chunks than a block of the search, many of them empty."""
    monkeypatch.setattr(module, "SEARCH_CHUNKS", 16)
    chunks = [(0, 0)] * 17 + [(4, 65)] + [(1, 2)] * 15 + [(0, 40), (9, 0)]
    check(Shape(heads=1, kv_heads=1), chunks, wide, device)


def test_nothing_to_do(device: torch.device) -> None:
    none = torch.zeros(0, dtype=torch.int32, device=device)
    storage = torch.zeros(1, 1, 2, 1, 16, 16, device=device)
    q = torch.zeros(0, 1, 16, device=device)
    numbers = {"slots": none, "starts": none, "firsts": none, "lengths": none}
    bounds = {"num_tokens": 0, "max_length": 0}
    out = prefill_attention(q, storage, 0, none[:, None], **numbers, **bounds, scale=1.0)
    assert out.shape == (0, 1, 16)


def test_work_counts_visible_pairs() -> None:
    work = prefill_attention_work([0], [8192], 32, 8, 128)
    assert work.flops == pytest.approx(2 * 8192**2 * 32 * 128, rel=1e-3)


def test_tiles_of_gpus() -> None:
    """Those of Hopper at 128 are what was measured; each GPU has one case of a name."""
    measured = {"BLOCK_M": 128, "TILE": 64, "num_warps": 8, "num_stages": 3}
    assert prefill_tiles(4, 128, 128, 64, 2, 8192, HOPPER) == measured
    assert prefill_tiles(4, 128, 128, 64, 2, 8192, (10, 0)) == measured
    assert prefill_tiles(4, 128, 128, 64, 2, 8192, (8, 6)) == measured | {"TILE": 32}
    assert prefill_tiles(4, 64, 64, 64, 2, 8192, (8, 0)) == measured
    of_256 = [prefill_tiles(2, 256, 256, 64, 2, 8192, gpu) for gpu in ((8, 0), HOPPER, (10, 0))]
    assert [tiles["BLOCK_M"] for tiles in of_256] == [64, 128, 64]
    names = [(case.name, number) for case in AHEAD for number in case.capabilities]
    assert len(set(names)) == len(names)
