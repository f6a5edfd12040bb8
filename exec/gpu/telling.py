"""Log probabilities where the logits are: a few numbers per row come back with the tokens.

The same numbers as `exec.logprobs` finds on the host, up to the order in which exponentials are
added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from batchgen.exec.gpu.handing import handed
from batchgen.exec.logprobs import DECIMALS, TokenLogprobs
from batchgen.exec.rows import RUNNING, Ints, Rows

GROUP_ROWS = 64  # whose float64 logits are in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Rows `numbers` [P] of a pass want the log probability of their token and of the `num_best`
    [P] best."""

    numbers: Ints
    num_best: Ints

    @property
    def width(self) -> int:
        """Numbers that come back per row."""
        return 1 + 2 * int(self.num_best.max())

    def own(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [P, V] of these rows, before anything changes them."""
        return logits.index_select(0, handed(self.numbers, logits.device))

    def look(self, own: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[P, width] float64 in the current queue: of the chosen `tokens` [R], then of the best,
        then their ids. Of equals the lowest id comes first."""
        most, vocab_size = int(self.num_best.max()), own.shape[1]
        chosen = tokens.index_select(0, handed(self.numbers, own.device)).long()
        chosen = chosen.clamp(max=vocab_size - 1)[:, None]  # what marks a bad row is no token
        backwards = torch.arange(vocab_size - 1, -1, -1, device=own.device)
        found = []
        for first in range(0, len(own), GROUP_ROWS):
            some = own[first : first + GROUP_ROWS]
            wide = some.double()
            total = wide.logsumexp(-1, keepdim=True)
            parts = [wide.gather(1, chosen[first : first + GROUP_ROWS]) - total]
            if most:
                # Numbers of which no two are equal: topk leaves the order of equals open.
                bits = (some.float() + 0.0).view(torch.int32)
                ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
                best = (ordered | backwards).topk(most, dim=1).values
                ids = vocab_size - 1 - (best & 0xFFFFFFFF)
                parts += [wide.gather(1, ids) - total, ids.double()]
            found.append(torch.cat(parts, 1))
        return torch.cat(found)

    def told(self, values: torch.Tensor) -> list[TokenLogprobs]:
        """What came back, row by row."""
        most, array = int(self.num_best.max()), values.numpy()
        logprobs = array[:, : 1 + most].round(DECIMALS)
        ids = array[:, 1 + most :].astype(np.int64)
        return [
            TokenLogprobs(float(line[0]), _pairs(some[:count], line[1 : 1 + count]))
            for line, some, count in zip(logprobs, ids, self.num_best.tolist(), strict=True)
        ]


def _pairs(ids: Ints, values: Sequence[float]) -> list[tuple[int, float]]:
    pairs = zip(ids.tolist(), map(float, values), strict=True)
    return [pair for pair in pairs if pair[1] > -np.inf]


def wish_of(rows: Rows, slots: Ints, vocab_size: int) -> Wish | None:
    """What the rows in `slots` [R] of a pass want to be told; None if nothing."""
    wanted = rows.options.logprobs[slots]
    numbers = np.flatnonzero((rows.ended[slots] == RUNNING) & (wanted >= 0))
    if not len(numbers):
        return None
    return Wish(numbers=numbers, num_best=np.minimum(wanted[numbers], vocab_size))
