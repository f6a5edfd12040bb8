"""The next tokens of a pass, chosen where its logits are: nothing waits for them."""

from __future__ import annotations

import numpy as np
import torch

from batchgen.exec.blocks import Blocks
from batchgen.exec.rows import Ints
from batchgen.exec.sampler import Draws, choose


def pick(logits_RV: torch.Tensor, drawing: Ints, draws: Draws) -> torch.Tensor:
    """Tokens [R] int32 of each row of logits; `drawing` are the rows that draw, and `draws` how.
    The vocabulary size marks a row whose logits are not finite. Uses the current queue."""
    if logits_RV.device.type == "cuda":
        return _on_device(logits_RV, drawing, draws)
    tokens = choose(Blocks.of(logits_RV.float()), drawing, draws)
    return torch.from_numpy(tokens.astype(np.int32))


def _on_device(logits_RV: torch.Tensor, drawing: Ints, draws: Draws) -> torch.Tensor:
    from batchgen.exec.kernels.sample import greedy, sample

    if not len(drawing):
        return greedy(logits_RV)
    count, device = len(logits_RV), logits_RV.device

    def column(values: np.ndarray, dtype: type, rest: float) -> torch.Tensor:
        whole = np.full(count, rest, dtype=dtype)
        whole[drawing] = values
        return torch.from_numpy(whole).pin_memory().to(device, non_blocking=True)

    return sample(
        logits_RV,
        temperature=column(draws.temperature, np.float32, 0.0),
        top_k=column(draws.top_k, np.int32, 0),
        top_p=column(draws.top_p, np.float32, 1.0),
        min_p=column(draws.min_p, np.float32, 0.0),
        seeds=column(draws.seeds.view(np.int64), np.int64, 0),
        counters=column(draws.counters, np.int64, 0),
    )
