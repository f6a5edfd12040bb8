"""The next tokens of a pass, chosen where its logits are: nothing waits for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchgen.exec.blocks import Blocks
from batchgen.exec.gpu.handing import handed
from batchgen.exec.kernels.use import uses_kernels
from batchgen.exec.rows import Ints
from batchgen.exec.sampler import Draws, choose


def pick(logits_RV: torch.Tensor, drawing: Ints, draws: Draws) -> torch.Tensor:
    """Tokens [R] int32 of each row of logits; `drawing` are the rows that draw, and `draws` how.
    The vocabulary size marks a row whose logits are not finite. Uses the current queue."""
    if uses_kernels(logits_RV):
        return _on_device(logits_RV, drawing, draws)
    tokens = choose(Blocks.of(logits_RV.float()), drawing, draws)
    return torch.from_numpy(tokens.astype(np.int32))


def _on_device(logits_RV: torch.Tensor, drawing: Ints, draws: Draws) -> torch.Tensor:
    from batchgen.exec.kernels.sample import DrawColumns, sample

    if not len(drawing):
        return sample(logits_RV)
    count, device = len(logits_RV), logits_RV.device

    def column(values: npt.NDArray[Any], rest: float) -> torch.Tensor:
        whole = np.full(count, rest, dtype=values.dtype)
        whole[drawing] = values
        return handed(whole, device)

    return sample(
        logits_RV,
        DrawColumns(
            temperature=column(draws.temperature, 0.0),
            top_p=column(draws.top_p, 1.0),
            min_p=column(draws.min_p, 0.0),
            top_k=column(draws.top_k, 0),
            seeds=column(draws.seeds.view(np.int64), 0),
            counters=column(draws.counters, 0),
        ),
    )
