"""Paged decode attention against the reference: ragged contexts, pages in any order, splits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from batchgen.exec.kernels import decode_splits
from batchgen.exec.kernels.decode_attention import (
    AHEAD,
    decode_attention,
    decode_attention_reference,
    decode_attention_work,
    decode_scratch_floats,
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    page: int = 16
    value_dim: int | None = None
    window: int = 0
    sinks: bool = False


def arena(
    shape: Shape, contexts: list[int], seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Storage whose unused places are NaN, tables of pages in random order, slots not in order.

    Columns behind a row's pages, and pages before its window, are out of bounds."""
    rng = np.random.default_rng(seed)
    counts = [-(-context // shape.page) for context in contexts]
    num_pages = sum(counts) + 2
    parts = 1 if shape.value_dim else 2
    size = (num_pages, 3, parts, shape.kv_heads, shape.page, shape.head_dim)
    storage = torch.full(size, math.nan, dtype=dtype, device=device)
    num_slots = len(contexts) + 3
    tables = np.full((num_slots, max(counts) + 1), 2**30, dtype=np.int32)
    slots = rng.permutation(num_slots)[: len(contexts)].astype(np.int32)
    order = rng.permutation(num_pages)
    for slot, context, count in zip(slots, contexts, counts, strict=True):
        pages, order = order[:count], order[count:]
        tables[slot, :count] = pages
        for column, page in enumerate(pages):
            held = min(context - column * shape.page, shape.page)
            kept = rng.standard_normal((3, parts, shape.kv_heads, held, shape.head_dim))
            storage[int(page), :, :, :, :held] = torch.tensor(kept, dtype=dtype, device=device)
    return storage, torch.tensor(tables, device=device), torch.tensor(slots, device=device)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    error = (found.float() - wanted).norm() / wanted.norm().clamp(min=1e-6)
    return bool(error <= (1e-4 if found.dtype == torch.float32 else 1e-2))


def check(shape: Shape, contexts: list[int], dtype: torch.dtype, device: torch.device) -> None:
    seed = len(contexts) + sum(contexts)
    storage, tables, slots = arena(shape, contexts, seed, dtype, device)
    q = torch.randn(len(contexts), shape.heads, shape.head_dim, dtype=dtype, device=device)
    sinks = torch.randn(shape.heads, device=device) if shape.sinks else None
    lengths = torch.tensor(contexts, dtype=torch.int32, device=device)
    dim = shape.value_dim or shape.head_dim
    bound = max(contexts) + 7
    out = torch.full((len(contexts), shape.heads, dim), math.nan, dtype=dtype, device=device)
    floats = decode_scratch_floats(
        len(contexts),
        shape.heads,
        storage,
        max_context=bound,
        window=shape.window,
        value_dim=shape.value_dim,
    )
    scratch = torch.full((floats,), math.nan, device=device)
    how = {"scale": 0.3, "window": shape.window, "sinks": sinks, "value_dim": shape.value_dim}
    given = (q, storage, 1, tables, slots, lengths)
    found = decode_attention(*given, **how, max_context=bound, out=out, scratch=scratch)
    assert found is out
    wanted = decode_attention_reference(*given, **how)
    for row, context in enumerate(contexts):
        assert close(out[row], wanted[row]), (row, context, shape)
        assert context or not out[row].any()


@pytest.fixture(params=["whole", "split"])
def splits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Rows in one split, or in as many as there can be."""
    if request.param == "split":
        monkeypatch.setattr(decode_splits, "LEAST_KEYS", 1)
        monkeypatch.setattr(decode_splits, "PROGRAMS", 16)
    return bool(request.param == "split")


SHAPES = [
    Shape(),
    Shape(page=64, heads=3, kv_heads=1, head_dim=24),
    Shape(page=1, heads=2, kv_heads=2),
    Shape(page=2, heads=16, kv_heads=1, sinks=True),
    Shape(page=64, heads=20, kv_heads=1, window=5, sinks=True),
    Shape(page=16, window=33),
    Shape(page=16, heads=5, kv_heads=1, head_dim=40, value_dim=24),
    Shape(page=64, heads=17, kv_heads=1, head_dim=48, value_dim=32, sinks=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_agrees_with_the_reference(
    shape: Shape, splits: bool, wide: torch.dtype, device: torch.device
) -> None:
    check(shape, [1, 0, shape.page, 75, 2 * shape.page + 1, 64, 0], wide, device)


def test_float32_is_tight(splits: bool, device: torch.device) -> None:
    check(Shape(sinks=True), [70, 3], torch.float32, device)


@pytest.mark.parametrize("seed", range(4))
def test_any_shape(seed: int, splits: bool, wide: torch.dtype, device: torch.device) -> None:
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 4))
    shape = Shape(
        heads=kv_heads * int(rng.integers(1, 17)),
        kv_heads=kv_heads,
        head_dim=int(rng.choice([16, 32, 80])),
        page=int(rng.choice([4, 16, 32, 64, 128])),
        window=int(rng.choice([0, 1, 20, 64])),
        sinks=bool(rng.integers(2)),
    )
    contexts = rng.integers(0, 140, int(rng.integers(1, 5))).tolist()
    check(shape, [*contexts, 1], wide, device)


def test_many_rows_find_their_items(
    monkeypatch: pytest.MonkeyPatch, wide: torch.dtype, device: torch.device
) -> None:
    """More rows than a block of the search, most of them empty, and one long."""
    monkeypatch.setattr(decode_splits, "LEAST_KEYS", 1)
    monkeypatch.setattr(decode_splits, "SEARCH_ROWS", 16)
    contexts = [0] * 17 + [65] + [2] * 16 + [130]
    check(Shape(heads=1, kv_heads=1), contexts, wide, device)


def test_queries_may_be_a_part_of_a_wider_tensor(wide: torch.dtype, device: torch.device) -> None:
    shape = Shape()
    storage, tables, slots = arena(shape, [20, 9], 0, wide, device)
    lengths = torch.tensor([20, 9], dtype=torch.int32, device=device)
    q = torch.randn(2, 8, 16, dtype=wide, device=device)[:, :4]
    given = (storage, 2, tables, slots, lengths)
    found = decode_attention(q, *given, scale=1.0, max_context=20)
    assert close(found, decode_attention_reference(q, *given, scale=1.0))


def test_one_launch_where_rows_are_short_and_many() -> None:
    storage = torch.empty(1, 1, 2, 8, 16, 16)
    assert decode_scratch_floats(1, 32, storage, max_context=decode_splits.LEAST_KEYS) == 0
    assert decode_scratch_floats(512, 32, storage, max_context=1024) == 0
    assert decode_scratch_floats(1, 32, storage, max_context=4096) > 0
    assert decode_scratch_floats(1, 32, storage, max_context=4096, window=128) == 0


def test_work_counts_what_has_to_be_read() -> None:
    work = decode_attention_work(64, 64 * 4096, 32, 8, 128)
    assert work.bytes == pytest.approx(64 * 4096 * 4096, rel=1e-3)
    assert work.flops == 64 * 4096 * 32 * 4 * 128
    assert len({case.name for case in AHEAD}) == len(AHEAD)
