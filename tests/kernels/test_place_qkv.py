"""Norm, rotation and KV in one launch, against torch and against the executor's own layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.config import KvLayout
from batchgen.exec.kernels.place_latent import place_latent, place_latent_reference
from batchgen.exec.kernels.place_qkv import place_qkv, place_qkv_reference
from batchgen.exec.layers import rms_norm
from batchgen.exec.rotary import apply_rope

EPS = 1e-6


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Where both are NaN nobody wrote."""
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.float().nan_to_num(), expected.float().nan_to_num()
    if found.numel():
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert float(error) < (1e-5 if found.device.type == "cpu" else 2e-2)


def a_pass(
    seed: int, num_tokens: int, page_tokens: int, device: torch.device
) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """Distinct (slot, position) pairs, some of them padding, and pages in random order."""
    generator = np.random.default_rng(seed)
    slots, columns = int(generator.integers(1, 6)), int(generator.integers(2, 5))
    num_tokens = min(num_tokens, slots * columns * page_tokens)
    places = generator.permutation(slots * columns * page_tokens)[:num_tokens]
    slot, position = np.divmod(places, columns * page_tokens)
    padding = generator.random(num_tokens) < 0.2
    slot[padding], position[padding] = -1, generator.integers(0, 1 << 30, int(padding.sum()))
    tables = generator.permutation(slots * columns + 3)[: slots * columns].reshape(slots, columns)
    wider = np.full((slots, columns + 2), 1 << 30)
    wider[:, :columns] = tables
    arrays = (position, slot, wider)
    ours = tuple(torch.from_numpy(x).to(device, torch.int32) for x in arrays)
    return generator, (*ours[:2], ours[2][:, :columns])


def angles(positions: int, pairs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.rand(positions, pairs, device=device) * 6
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("seed", range(12))
def test_heads_as_torch(seed: int, device: torch.device, wide: torch.dtype) -> None:
    torch.manual_seed(seed)
    head_dim = (8, 64, 128, 24, 96, 256)[seed % 6]
    kv_heads, group = (1, 2, 4, 3)[seed % 4], (1, 4, 16, 5, 7)[seed % 5]
    page_tokens = (16, 1, 64, 5)[seed % 4]
    generator, (positions, slots, tables) = a_pass(seed, 11, page_tokens, device)
    num_tokens, heads = len(slots), kv_heads * group
    layers, layer = 3, int(generator.integers(3))
    wider = torch.randn(num_tokens, (heads + 2 * kv_heads) * head_dim + 16).to(device, wide)
    flat = wider[:, : (heads + 2 * kv_heads) * head_dim]
    qkv = flat.unflatten(1, (-1, head_dim)) if seed % 2 else flat
    norms = None
    if seed % 3:
        norms = tuple((torch.rand(head_dim) + 0.5).to(device, wide) for _ in range(2))
    cos, sin = angles(int(tables.shape[1]) * page_tokens, head_dim // 2, device)
    shape = (tables.numel() + 3, layers, 2, kv_heads, page_tokens, head_dim)
    storage = torch.full(shape, float("nan"), device=device, dtype=wide)
    expected_storage = storage.clone()
    out = torch.full((num_tokens, heads, head_dim), float("nan"), device=device, dtype=wide)
    inputs = (norms, EPS, cos, sin, positions, slots, tables)
    assert place_qkv(qkv, *inputs, storage, layer, out=out) is out
    expected = place_qkv_reference(flat, *inputs, expected_storage, layer)
    agree(out, expected)
    agree(storage, expected_storage)
    assert not out[slots < 0].any()
    # Values are copied, bit by bit.
    values, wanted = storage[:, layer, 1], expected_storage[:, layer, 1]
    assert torch.equal(values.nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("seed", range(8))
def test_latents_as_torch(seed: int, device: torch.device, wide: torch.dtype) -> None:
    torch.manual_seed(seed)
    rank, rotary, heads = (512, 40, 16, 96)[seed % 4], (64, 8, 24)[seed % 3], (1, 16, 37)[seed % 3]
    page_tokens = (16, 1, 5)[seed % 3]
    _, (positions, slots, tables) = a_pass(seed, 9, page_tokens, device)
    num_tokens = len(slots)
    down = torch.randn(num_tokens, rank + rotary).to(device, wide)
    latent, key = down.split((rank, rotary), dim=1)
    query = torch.randn(num_tokens, heads, 32 + rotary).to(device, wide)[..., 32:]
    norm = (torch.rand(rank) + 0.5).to(device, wide) if seed % 2 else None
    cos, sin = angles(int(tables.shape[1]) * page_tokens, rotary // 2, device)
    shape = (tables.numel() + 3, 2, 1, 1, page_tokens, rank + rotary)
    storage = torch.full(shape, float("nan"), device=device, dtype=wide)
    expected_storage = storage.clone()
    whole = torch.full((num_tokens, heads, rank + rotary), float("nan"), device=device, dtype=wide)
    out = whole[..., rank:]
    inputs = (latent, key, query, norm, EPS, cos, sin, positions, slots, tables)
    assert place_latent(*inputs, storage, 1, out=out) is out
    agree(out, place_latent_reference(*inputs, expected_storage, 1))
    agree(storage, expected_storage)
    assert whole[..., :rank].isnan().all()


def test_the_reference_is_the_executor() -> None:
    """Norm, rotation and write as `exec.layers` does them, into its own arena."""
    torch.manual_seed(0)
    layout = KvLayout(layers=2, parts=2, heads=2, head_dim=16)
    arena = KvArena("test", 8, layout, page_tokens=4, dtype=torch.float32)
    qkv, norms = torch.randn(5, 10, 16), (torch.rand(16), torch.rand(16))
    positions, slots = torch.tensor([0, 3, 4, 7, 2]), torch.tensor([0, 0, 0, 0, 1])
    tables = torch.tensor([[5, 2], [7, 0]])
    cos, sin = angles(8, 8, torch.device("cpu"))
    storage = torch.zeros_like(arena.storage)
    inputs = (norms, EPS, cos, sin, positions, slots, tables)
    found = place_qkv_reference(qkv, *inputs, storage, 1)
    q, k, v = qkv.split((6, 2, 2), dim=1)
    q, k = rms_norm(q, norms[0], EPS), rms_norm(k, norms[1], EPS)
    turn = (cos[positions][:, None], sin[positions][:, None])
    pages = tables[slots, positions // 4]
    arena.write(1, pages, positions % 4, apply_rope(k, *turn), v)
    assert torch.equal(found, apply_rope(q, *turn))
    assert torch.equal(storage, arena.storage)


def test_no_tokens(device: torch.device, wide: torch.dtype) -> None:
    none = torch.zeros(0, dtype=torch.int32, device=device)
    storage = torch.zeros(2, 1, 2, 1, 4, 8, device=device, dtype=wide)
    cos, sin = angles(4, 4, device)
    tables = torch.zeros(1, 2, dtype=torch.int32, device=device)
    qkv = torch.zeros(0, 4, 8, device=device, dtype=wide)
    found = place_qkv(qkv, None, EPS, cos, sin, none, none, tables, storage, 0)
    assert found.shape == (0, 2, 8)
