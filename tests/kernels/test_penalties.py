"""Bias, penalties and forbidden tokens against torch and against the executor's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batchgen.exec.kernels.penalties import Changes, apply_penalties, apply_penalties_reference


def lists(generator: np.random.Generator, rows: int, width: int, vocab_size: int) -> torch.Tensor:
    """Distinct tokens of each row, behind them and among them -1."""
    found = np.full((rows, width), -1)
    for row in found:
        count = int(generator.integers(0, min(width, vocab_size) + 1))
        row[:count] = generator.permutation(vocab_size)[:count]
        generator.shuffle(row)
    return torch.from_numpy(found).to(torch.int32)


@pytest.mark.parametrize("seed", range(6))
def test_as_torch(seed: int, device: torch.device, wide: torch.dtype) -> None:
    generator = np.random.default_rng(seed)
    rows, vocab_size = int(generator.integers(1, 6)), int(generator.choice([7, 130, 2000]))
    widths = ((5, 3, 2), (600, 1, 0), (0, 0, 4), (33, 513, 1))[seed % 4]
    seen, biased, stops = (lists(generator, rows, width, vocab_size) for width in widths)
    which = generator.permutation(rows + 2)[:rows]
    which[generator.random(rows) < 0.2] = -1
    numbers = torch.from_numpy(generator.random((3, rows)) * 2 + 0.1)
    # Tokens that nobody has counted yet: none, one of those that are counted, or a new one.
    last, newest = generator.integers(0, vocab_size, 9), generator.permutation(9)[:rows]
    newest[generator.random(rows) < 0.3] = -1
    if widths[0]:
        last[newest[0]] = int(seen[0].max().clamp(min=0))
    changes = Changes(
        rows=torch.from_numpy(which).to(device, torch.int32),
        seen=seen.to(device),
        produced=torch.from_numpy(generator.integers(0, 4, tuple(seen.shape))).to(device).int(),
        repetition=numbers[0].to(device),
        frequency=numbers[1].to(device),
        presence=numbers[2].to(device),
        biased=biased.to(device),
        bias=torch.from_numpy(generator.normal(size=tuple(biased.shape))).to(device).float(),
        stops=stops.to(device),
        last=torch.from_numpy(last).to(device, torch.int32),
        newest=torch.from_numpy(newest).to(device, torch.int32),
    )
    wider = torch.from_numpy(generator.normal(size=(rows + 2, vocab_size + 8)) * 4)
    logits = wider.to(device, wide)[:, :vocab_size]
    expected = logits.clone()
    apply_penalties(logits, changes)
    apply_penalties_reference(expected, changes)
    torch.testing.assert_close(
        logits, expected, rtol=1e-6 if device.type == "cpu" else 1e-2, atol=0
    )
