"""Tokens that stay on the device, against indexing in torch."""

from __future__ import annotations

import numpy as np
import torch

from batchgen.exec.gpu.last import in_flight
from batchgen.exec.kernels.last_tokens import (
    gather_tokens,
    gather_tokens_reference,
    keep_tokens,
    keep_tokens_reference,
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
            given = torch.where(slots_T < 0, given, in_flight(slots_T).to(dtype))
            out = torch.full_like(given, -7)
            found = gather_tokens(last, given, out=out)
            assert torch.equal(found, gather_tokens_reference(last, given))
            assert torch.equal(found[slots_T >= 0], last[slots_T[slots_T >= 0].long()])
    assert not len(gather_tokens(last, given[:0]))
