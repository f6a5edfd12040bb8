"""Routed experts on the device against torch: shapes, blocks, slots, biases, clamps and order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.config import ClampedSwiglu, RoutingConfig
from batchgen.exec.kernels import expert_tiles
from batchgen.exec.kernels.combine_experts import (
    combine_experts,
    combine_experts_reference,
    combine_experts_work,
)
from batchgen.exec.kernels.expert_tiles import tiles_of
from batchgen.exec.kernels.experts import experts, experts_reference, experts_work, new_space
from batchgen.exec.kernels.experts_grouped import experts_grouped, experts_grouped_work
from batchgen.exec.kernels.route_experts import route_experts
from batchgen.exec.mlp import SparseMlp
from batchgen.exec.routing import Router


def draw(
    seed: int,
    tokens: int,
    k: int,
    num_experts: int,
    hidden: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    full: bool = False,
) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Arguments of `experts`; `full`: with slots in a larger space, biases and a clamp."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.tensor(rng.normal(size=shape) * scale, dtype=dtype, device=device)

    liked = rng.random(num_experts) ** 3 * 3
    scores = rng.gumbel(size=(tokens, num_experts)) + liked
    chosen = np.argsort(-scores, axis=1)[:, :k].astype(np.int32)
    weights = torch.tensor(rng.random((tokens, k)), dtype=torch.float32, device=device)
    slots = num_experts + 3 if full else num_experts
    given = (
        normal(tokens, hidden),
        weights,
        torch.tensor(chosen, device=device).contiguous(),
        normal(slots, 2 * width, hidden, scale=hidden**-0.5),
        normal(slots, hidden, width, scale=width**-0.5),
    )
    if not full:
        return given, {}
    where = rng.permutation(slots)[:num_experts].astype(np.int32)
    for matrix in given[3:]:  # what is in no slot must never be read
        matrix[[s for s in range(slots) if s not in where]] = torch.nan
    return given, {
        "gate_up_bias": normal(num_experts, 2 * width),
        "down_bias": normal(num_experts, hidden),
        "clamp": (1.0, 1.702),
        "slots": torch.tensor(where, device=device),
    }


def floats(value: Any) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if is_float else value


def expect(found: torch.Tensor, given: tuple[torch.Tensor, ...], options: dict[str, Any]) -> None:
    assert found.dtype == given[0].dtype
    expected = experts_reference(
        *(floats(part) for part in given), **{name: floats(v) for name, v in options.items()}
    )
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert (found.float() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("tokens", "k", "num_experts", "hidden", "width"),
    [
        (1, 2, 8, 64, 96),  # not sorted
        (1, 1, 1, 32, 32),
        (2, 4, 37, 48, 40),  # depths that no step divides
        (7, 2, 8, 64, 32),
        (33, 3, 5, 40, 72),
        (61, 8, 16, 64, 48),
    ],
)
def test_against_the_reference(
    tokens: int,
    k: int,
    num_experts: int,
    hidden: int,
    width: int,
    full: bool,
    device: torch.device,
    wide: torch.dtype,
) -> None:
    given, options = draw(tokens, tokens, k, num_experts, hidden, width, wide, device, full=full)
    out = torch.full_like(given[0], torch.nan)
    space = new_space(tokens + 3, k, num_experts, hidden, width, wide, device)
    for part in (space.inner, space.parts):
        part.fill_(torch.nan)
    for part in space.groups:
        part.fill_(1 << 30)
    assert experts(*given, **options, out=out, scratch=space) is out
    expect(out, given, options)


@pytest.mark.parametrize("row", range(len(expert_tiles._TILES)))
def test_every_tile_of_the_table(
    row: int, device: torch.device, wide: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles of large models on small ones, whatever the rows per expert. Interpreted ones are
    those of bfloat16 too."""
    _, block, up, down = expert_tiles._TILES[row]
    if device.type != "cuda":
        monkeypatch.setattr(expert_tiles, "_table", lambda rows, size: table(row))
    monkeypatch.setattr(expert_tiles, "_TILES", ((1 << 30, block, up, down),))
    given, options = draw(row, 45, 3, 6, 96, 160, wide, device, full=bool(row % 2))
    assert tiles_of(135, 6, 96, 160, wide.itemsize)["BLOCK_M"] == block
    expect(experts(*given, **options), given, options)


def table(row: int) -> dict[str, int]:
    return {**TABLES[row]}


TABLES = [expert_tiles._table(tile[0], 2) for tile in expert_tiles._TILES]


def test_float32_everywhere(device: torch.device) -> None:
    given, options = draw(3, 40, 2, 4, 64, 48, torch.float32, device, full=True)
    expect(experts(*given, **options), given, options)


def test_weights_and_tokens_within_larger_tensors(device: torch.device, wide: torch.dtype) -> None:
    """An expert's matrices side by side in one slot; tokens that are part of wider rows."""
    given, _ = draw(9, 20, 2, 4, 64, 32, wide, device)
    x, weights, chosen, gate_up, down = given
    slot = torch.full((4, 3 * 32 * 64 + 64), torch.nan, dtype=wide, device=device)
    one, two = slot[:, : 64 * 64].view(4, 64, 64), slot[:, 64 * 64 : -64].view(4, 64, 32)
    one.copy_(gate_up)
    two.copy_(down)
    rows = torch.full((20, 80), torch.nan, dtype=wide, device=device)
    rows[:, :64] = x
    expect(experts(rows[:, :64], weights, chosen, one, two), given, {})


def test_a_token_is_the_same_wherever_it_stands(device: torch.device, wide: torch.dtype) -> None:
    """Within one bucket of sizes, nothing depends on the other tokens: rows are summed alone.

    Bit by bit on a GPU. The interpreter multiplies tiles by NumPy, whose library sums a row in
    another order at the edge of a tile on some processors: there, to the last bits.
    """
    (x, weights, chosen, *matrices), _ = draw(4, 24, 3, 4, 64, 48, wide, device)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1)).to(device)
    found = experts(x[order], weights[order], chosen[order], *matrices)
    rtol, atol = (0.0, 0.0) if device.type == "cuda" else (1e-5, 1e-6)
    expected = experts(x, weights, chosen, *matrices)[order]
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("tokens", "k", "num_experts"), [(1, 2, 8), (50, 3, 6)])
def test_grouped_products(
    tokens: int, k: int, num_experts: int, full: bool, device: torch.device, wide: torch.dtype
) -> None:
    given, options = draw(tokens, tokens, k, num_experts, 64, 48, wide, device, full=full)
    out = torch.full_like(given[0], torch.nan)
    assert experts_grouped(*given, **options, out=out) is out
    expect(out, given, options)


@pytest.mark.parametrize("clamped", [False, True])
def test_as_the_mlp_of_the_models(clamped: bool, device: torch.device) -> None:
    """Router and experts in float32, with the layer that runs in torch today."""
    num_experts, k, hidden, width = 6, 2, 32, 24
    given, options = draw(2, 10, k, num_experts, hidden, width, torch.float32, device, full=clamped)
    x, _, _, gate_up, down = given
    slots = options.pop("slots", None)
    if slots is not None:
        gate_up, down = gate_up[slots.long()], down[slots.long()]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_experts, hidden, generator=generator).to(device)
    arithmetic = Arithmetic(torch.float32, "reference")
    router = Router(
        config=RoutingConfig(), experts_per_token=k, arithmetic=arithmetic, weight=weight
    )
    clamp = options.pop("clamp", None)
    layer = SparseMlp(
        arithmetic=arithmetic,
        router=router,
        gate_up=gate_up,
        down=down,
        clamp=None if clamp is None else ClampedSwiglu(limit=clamp[0], alpha=clamp[1]),
        **options,
    )
    weights, chosen = route_experts(x @ weight.T, k=k)
    found = experts(x, weights, chosen, gate_up, down, clamp=clamp, **options)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)


def test_sum_of_parts(device: torch.device, wide: torch.dtype) -> None:
    rng = np.random.default_rng(8)
    for tokens, k, hidden in ((1, 1, 8), (5, 3, 1500), (3, 8, 64)):
        parts = torch.tensor(rng.normal(size=(tokens * k, hidden)), dtype=wide, device=device)
        options = {
            "places": torch.tensor(rng.permutation(tokens * k).astype(np.int32), device=device),
            "weights": torch.rand(tokens, k).to(device),
            "chosen": torch.tensor(rng.integers(0, 4, (tokens, k)).astype(np.int32)).to(device),
            "bias": torch.tensor(rng.normal(size=(4, hidden)), dtype=wide, device=device),
        }
        for some in ({}, options):
            out = torch.full((tokens, hidden), torch.nan, dtype=wide, device=device)
            combine_experts(parts, k, out=out, **some)
            expected = combine_experts_reference(parts, k, **some)
            torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
            if wide == torch.float32:
                torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_no_tokens_and_the_work(device: torch.device, wide: torch.dtype) -> None:
    given, _ = draw(1, 1, 2, 4, 32, 32, wide, device)
    x, weights, chosen, gate_up, down = given
    empty = (x[:0], weights[:0], chosen[:0])
    for way in (experts, experts_grouped):
        assert way(*empty, gate_up, down).shape == (0, 32)
    assert combine_experts(x[:0], 2).shape == (0, 32)
    # All experts of Qwen3-30B-A3B in a batch of 256: 1.21 GB of weights.
    work = experts_work(256, 8, 128, 2048, 768, 2)
    assert work.flops == 6 * 2048 * 2048 * 768
    assert 1.2e9 < work.bytes < 1.25e9
    assert combine_experts_work(torch.empty(16, 32, device=device), 8).bytes == 18 * 32 * 4
    assert experts_grouped_work(10, 32, 16, 2).flops == 6 * 10 * 32 * 16
