"""What a row's options change in its logits before a token is chosen: bias, penalties, no end yet.

Only rows that ask are touched. Penalties follow from the row's tokens alone, so that a row which
was suspended, recomputed or moved gets the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from batchgen.exec.rows import Rows

Ints = npt.NDArray[np.int64]


class TokenCounts:
    """Distinct tokens of one row in the order in which they came, and how often it has produced
    each (0: only given to it). Sparse, and brought up to date by the tokens that are new."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._ids: Ints = np.zeros(64, dtype=np.int64)
        self._produced: Ints = np.zeros(64, dtype=np.int64)
        self._seen = -1  # tokens of the tail that are counted; -1: not even the prompt

    def update(self, rows: Rows, slot: int) -> tuple[Ints, Ints]:
        """Ids and counts of the row's tokens so far."""
        if self._seen < 0:
            for token in np.unique(rows.ids(slot, 0, int(rows.prompt[slot]))).tolist():
                self._count(token, 0)
            self._seen = 0
        tail = int(rows.tail[slot])
        for token, given in rows.tail_tokens(slot, self._seen, tail):
            self._count(token, 0 if given else 1)
        self._seen = tail
        size = len(self._place)
        return self._ids[:size], self._produced[:size]

    def _count(self, token: int, times: int) -> None:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._produced = np.concatenate((self._produced, np.zeros_like(self._produced)))
        self._ids[place] = token
        self._produced[place] += times


def adjust(logits_RV: torch.Tensor, numbers: Ints, slots: Ints, rows: Rows) -> None:
    """Change `logits_RV[numbers]`, which are those of `slots`, in place.

    The bias is added first. The repetition penalty divides positive logits of tokens that the row
    has, prompt included, and multiplies negative ones. Presence and frequency penalties are
    subtracted for tokens that it has produced, once and per time. Tokens that would end the row
    get -inf until its stage has `min_tokens` others.
    """
    options = rows.options
    for number, slot in zip(numbers.tolist(), slots.tolist(), strict=True):
        row_V, state = logits_RV[number], options.state.get(slot)
        if state is not None and state.bias is not None:
            ids, bias = (torch.from_numpy(x).to(row_V.device) for x in state.bias)
            row_V[ids] += bias
        if state is not None and state.counts is not None:
            seen, times = state.counts.update(rows, slot)
            ids = torch.from_numpy(seen).to(row_V.device)
            values = row_V[ids].double()
            penalty = float(options.repetition_penalty[slot])
            values = torch.where(values > 0, values / penalty, values * penalty)
            taken = float(options.frequency_penalty[slot]) * times
            taken += float(options.presence_penalty[slot]) * (times > 0)
            row_V[ids] = (values - torch.from_numpy(taken).to(row_V.device)).to(row_V.dtype)
        if rows.stage_produced(slot) < options.min_tokens[slot]:
            row_V[torch.from_numpy(rows.stop_ids(slot)).to(row_V.device)] = float("-inf")
