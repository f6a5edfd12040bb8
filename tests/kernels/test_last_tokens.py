"""Tokens and pages that stay on the device, against indexing in torch."""

from __future__ import annotations

import numpy as np
import torch

from batchgen.exec.kernels.last_tokens import (
    gather_tokens,
    gather_tokens_reference,
    keep_tokens,
    keep_tokens_reference,
    set_pages,
    set_pages_reference,
)


def test_tokens_go_and_come(device: torch.device) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 127, 129, 300):
        slots = generator.permutation(400)[:count]
        slots[generator.random(count) < 0.3] = -1
        tokens = generator.integers(0, 111, count)  # above 100: bad rows
        slots_T = torch.from_numpy(slots).to(device, torch.int32)
        tokens_T = torch.from_numpy(tokens).to(device, torch.int32)
        for dtype in (torch.int32, torch.int64):
            last = torch.arange(400, dtype=dtype, device=device)
            expected = last.clone()
            keep_tokens(last, slots_T, tokens_T, 100)
            keep_tokens_reference(expected, slots_T, tokens_T, 100)
            assert torch.equal(last, expected)
            assert int(last.max()) < 400
            given = torch.randint(0, 99, (count,), dtype=dtype, device=device)
            out = torch.full_like(given, -7)
            found = gather_tokens(last, slots_T, given, out=out)
            assert torch.equal(found, gather_tokens_reference(last, slots_T, given))
    assert not len(gather_tokens(last, slots_T[:0], given[:0]))


def test_pages_are_set(device: torch.device) -> None:
    generator = np.random.default_rng(1)
    for count in (0, 1, 130, 1000):
        wider = torch.zeros(64, 50, dtype=torch.int32, device=device)
        tables = wider[:, :32]
        expected = tables.clone()
        places = generator.permutation(64 * 32)[:count]
        triplets = np.stack((places // 32, places % 32, generator.integers(0, 9999, count)), 1)
        triplets[generator.random(count) < 0.2, 0] = -1
        ours = torch.from_numpy(triplets).to(device, torch.int32)
        set_pages(tables, ours)
        set_pages_reference(expected, ours)
        assert torch.equal(tables, expected)
        assert not wider[:, 32:].any()
