"""RMS norms against torch: short and long rows, strided rows, sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batchgen.exec.kernels.norms import (
    add_rms_norm,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_reference,
)

EPS = 1e-6


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert float(error) < 1e-2


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32).to(device, dtype)


@pytest.mark.parametrize("hidden", [1, 7, 64, 128, 576, 2048, 2880, 5120, 16384])
def test_rows_of_every_length(hidden: int, device: torch.device, wide: torch.dtype) -> None:
    torch.manual_seed(hidden)
    rows = 5 if hidden < 4096 else 2
    x, added = (random((rows, hidden), device, wide) for _ in range(2))
    weight = random((hidden,), device, wide)
    out = torch.full_like(x, float("nan"))
    assert rms_norm(x, weight, EPS, out=out) is out
    agree(out, rms_norm_reference(x, weight, EPS))
    total, normed = (torch.full_like(x, float("nan")) for _ in range(2))
    add_rms_norm(x, added, weight, EPS, out=(total, normed))
    expected = add_rms_norm_reference(x, added, weight, EPS)
    assert torch.equal(total, expected[0])
    agree(normed, expected[1])


def test_strided_rows_and_heads(device: torch.device, wide: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    for _ in range(8):
        rows, heads, dim, more = (int(n) for n in generator.integers(1, 12, 4))
        dim *= 8
        weight = random((dim,), device, wide)
        wider = random((rows, heads + more, dim + 8), device, wide)
        for x in (wider[:, 0, :dim], wider[:, :heads, :dim], wider[:, more:], wider[0, 0, :dim]):
            weight = random((x.shape[-1],), device, wide)
            found = rms_norm(x, weight, EPS)
            assert found.shape == x.shape
            agree(found, rms_norm_reference(x, weight, EPS))
            strided = torch.full_like(wider, float("nan"))
            if x.dim() == 3:
                part = strided[:, : x.shape[1], : x.shape[2]]
                agree(rms_norm(x, weight, EPS, out=part), rms_norm_reference(x, weight, EPS))
                assert int(strided.isnan().sum()) == strided.numel() - part.numel()


def test_the_sum_may_replace_what_came_in(device: torch.device, wide: torch.dtype) -> None:
    x, added = (random((9, 320), device, wide) for _ in range(2))
    weight = random((320,), device, wide)
    expected = add_rms_norm_reference(x, added, weight, EPS)
    normed = torch.empty_like(x)
    add_rms_norm(x, added, weight, EPS, out=(x, normed))
    assert torch.equal(x, expected[0])
    agree(normed, expected[1])


def test_a_row_does_not_depend_on_its_batch(device: torch.device, wide: torch.dtype) -> None:
    x, weight = random((33, 192), device, wide), random((192,), device, wide)
    all_rows = rms_norm(x, weight, EPS)
    assert all(torch.equal(rms_norm(x[i : i + 1], weight, EPS)[0], all_rows[i]) for i in range(33))


def test_no_rows(device: torch.device, wide: torch.dtype) -> None:
    assert rms_norm(torch.empty(0, 64, device=device), torch.ones(64), EPS).shape == (0, 64)
