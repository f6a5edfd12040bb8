"""Gated activations against torch and against the executor's own."""

from __future__ import annotations

import pytest
import torch

from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.config import ClampedSwiglu
from batchgen.exec.kernels.swiglu import swiglu, swiglu_reference
from batchgen.exec.mlp import gated


@pytest.mark.parametrize("clamp", [None, (7.0, 1.702)])
@pytest.mark.parametrize("width", [1, 96, 128, 720, 768, 2880, 4096])
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_as_torch(
    rows: int,
    width: int,
    clamp: tuple[float, float] | None,
    device: torch.device,
    wide: torch.dtype,
) -> None:
    torch.manual_seed(width)
    wider = (torch.randn(rows, 2 * width + 16) * 5).to(device, wide)
    gate_up = wider[:, : 2 * width]
    out = torch.full((rows, width), float("nan"), device=device, dtype=wide)
    assert swiglu(gate_up, clamp, out=out) is out
    expected = swiglu_reference(gate_up, clamp)
    if wide == torch.float32:
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    else:
        error = (out.float() - expected.float()).norm() / expected.float().norm()
        assert float(error) < 1e-2


def test_the_reference_is_the_executor() -> None:
    gate_up = torch.randn(5, 64) * 8
    arithmetic = Arithmetic(torch.float32, "cpu")
    assert torch.equal(swiglu_reference(gate_up), gated(gate_up, arithmetic))
    clamped = gated(gate_up, arithmetic, ClampedSwiglu(alpha=1.702, limit=7.0))
    assert torch.equal(swiglu_reference(gate_up, (7.0, 1.702)), clamped)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_extremes(device: torch.device) -> None:
    inf, nan = float("inf"), float("nan")
    gate = torch.tensor([200.0, -200.0, nan, 1.0, inf, 0.0], device=device)
    up = torch.tensor([1.0, 1.0, 1.0, nan, 1.0, -inf], device=device)
    both = torch.cat((gate, up))[None]
    for clamp in (None, (7.0, 1.702)):
        torch.testing.assert_close(
            swiglu(both, clamp), swiglu_reference(both, clamp), equal_nan=True, rtol=1e-4, atol=1e-6
        )
    assert swiglu(both[:0]).shape == (0, 6)
