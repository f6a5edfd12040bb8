"""Log probabilities of chosen tokens and of the best alternatives, for the rows that ask.

Those of the model: of its logits before bias, penalties and temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from batchgen.exec.sampler import TIERS, Blocks, best_tokens, block_masses

DECIMALS = 6  # what float32 logits are good for

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one produced token: its log probability, and (id, log probability) of the best tokens."""

    chosen: float
    best: list[tuple[int, float]]


@dataclass(slots=True)
class Logprobs:
    """Those of the tokens that a row has produced."""

    tokens: list[TokenLogprobs] = field(default_factory=list)


def measure(logits_RV: torch.Tensor, tokens: Ints, num_best: Ints) -> list[TokenLogprobs]:
    """Of `tokens` [R] under the logits of their rows, with the `num_best` [R] best of each."""
    blocks = Blocks.of(logits_RV.cpu())
    rows = np.arange(len(tokens))
    masses = block_masses(blocks, rows, np.ones(len(rows))).sum(axis=1, dtype=np.float64)
    logits, tops = blocks.logits.numpy(), blocks.tops.numpy()
    total = tops.max(axis=1).astype(np.float64) + np.log(masses)
    chosen = (logits.reshape(len(rows), -1)[rows, tokens] - total).round(DECIMALS)
    ids, values = best_tokens(logits, tops, rows, min(TIERS[0], tops.shape[1]))
    values = (values - total[:, None]).round(DECIMALS)
    found = []
    for row, count in enumerate(num_best.tolist()):
        best = zip(ids[row, :count].tolist(), values[row, :count].tolist(), strict=True)
        found.append(
            TokenLogprobs(float(chosen[row]), [pair for pair in best if pair[1] > -np.inf])
        )
    return found
