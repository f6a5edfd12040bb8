"""What rows ask to be changed in their logits, as lists for the device: nobody waits for tokens.

The host knows a row's tokens but for the one in flight, which only the device knows; it is where
the pass before leaves it, and counts as produced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchgen.exec.gpu.handing import handed
from batchgen.exec.kernels.use import uses_kernels
from batchgen.exec.rows import RUNNING, Ints, Rows

NONE: Ints = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The columns of `kernels.penalties.Changes`, on the host."""

    columns: dict[str, npt.NDArray[Any]]

    def apply(self, logits: torch.Tensor, last: torch.Tensor) -> None:
        """Change logits [R, V] in place, in the current queue; `last` [slots]: tokens in flight."""
        # Triton is loaded where it is used: a test decides before that how kernels run.
        from batchgen.exec.kernels.penalties import (
            Changes,
            apply_penalties,
            apply_penalties_reference,
        )

        columns = {name: handed(column, logits.device) for name, column in self.columns.items()}
        changes = Changes(last=last, **columns)
        if uses_kernels(logits):
            apply_penalties(logits, changes)
        else:
            apply_penalties_reference(logits, changes)


def asked_of(rows: Rows, slots: Ints) -> Asked | None:
    """What the rows in `slots` [R] of a pass ask for; None if nothing."""
    options = rows.options
    numbers = np.flatnonzero((rows.ended[slots] == RUNNING) & options.adjusted[slots])
    if not len(numbers):
        return None
    ours = slots[numbers]
    seen, produced, biased, bias, stops = [], [], [], [], []
    for slot in ours.tolist():
        state = options.state.get(slot)
        counts = None if state is None else state.counts
        tokens, times = (NONE, NONE) if counts is None else counts.update(rows, slot)
        seen.append(tokens)
        produced.append(times)
        added = None if state is None else state.bias
        biased.append(NONE if added is None else added[0])
        bias.append(NONE if added is None else added[1])
        young = rows.stage_produced(slot) + rows.flying[slot] < options.min_tokens[slot]
        stops.append(rows.stop_ids(slot) if young else NONE)
    counted = np.array([len(tokens) > 0 for tokens in seen])
    return Asked(
        columns={
            "rows": numbers.astype(np.int32),
            "seen": _padded(seen, np.int32, -1),
            "produced": _padded(produced, np.int32, 0),
            "repetition": options.repetition_penalty[ours],
            "frequency": options.frequency_penalty[ours],
            "presence": options.presence_penalty[ours],
            "biased": _padded(biased, np.int32, -1),
            "bias": _padded(bias, np.float32, 0),
            "stops": _padded(stops, np.int32, -1),
            "newest": np.where(counted & (rows.flying[ours] > 0), ours, -1).astype(np.int32),
        }
    )


def _padded(lists: Sequence[npt.NDArray[Any]], dtype: Any, rest: int) -> npt.NDArray[Any]:
    """[rows, longest], filled up with `rest`."""
    found = np.full((len(lists), max(1, *map(len, lists))), rest, dtype=dtype)
    for row, values in zip(found, lists, strict=True):
        row[: len(values)] = values
    return found
