"""Log probabilities of chosen tokens and of the best alternatives, for the rows that ask.

Those of the model: of its logits before bias, penalties and temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from batchgen.exec.blocks import Blocks, Ints, best_tokens, block_masses

DECIMALS = 6  # what float32 logits are good for


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one produced token: its log probability, and (id, log probability) of the best tokens."""

    chosen: float
    best: list[tuple[int, float]]


@dataclass(slots=True)
class Logprobs:
    """Those of the tokens that a row has produced."""

    tokens: list[TokenLogprobs] = field(default_factory=list)


def measure(blocks: Blocks, rows: Ints, tokens: Ints, num_best: Ints) -> list[TokenLogprobs]:
    """Of `tokens` [P] under the logits of `rows`, with the `num_best` [P] best of each."""
    if blocks.logits.device.type != "cpu":
        blocks, rows = blocks.take(torch.from_numpy(rows)), np.arange(len(rows))
    masses = block_masses(blocks, rows, np.ones(len(rows))).sum(axis=1, dtype=np.float64)
    logits, tops = blocks.logits.numpy(), blocks.tops.numpy()
    total = tops[rows].max(axis=1).astype(np.float64) + np.log(masses)
    chosen = (logits.reshape(len(logits), -1)[rows, tokens] - total).round(DECIMALS)
    # As many blocks have as many tokens that are no worse than the best of the last of them.
    num_blocks = min(max(int(num_best.max()), 1), tops.shape[1])
    ids, values = best_tokens(logits, tops, rows, num_blocks)
    values = (values - total[:, None]).round(DECIMALS)
    found = []
    for place, count in enumerate(num_best.tolist()):
        best = zip(ids[place, :count].tolist(), values[place, :count].tolist(), strict=True)
        found.append(
            TokenLogprobs(float(chosen[place]), [pair for pair in best if pair[1] > -np.inf])
        )
    return found
