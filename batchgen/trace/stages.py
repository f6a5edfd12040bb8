"""Further stages of rows: follow-up, output and wait of each, in columns. Reads and writes no file.

A row with stages is a conversation: when its output ends, `wait_ps` later (a tool that works, a
person who types) a follow-up of `prompt_tokens` is appended and `output_tokens` more are generated.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_STAGES = 2**15 - 1
"""Most further stages of a row: the sequence table counts them in 16 bits."""
MAX_WAIT_PS = 10**18
"""Longest wait, 1e6 seconds: what a body may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stages:
    """Row i has the stages `offsets[i]:offsets[i + 1]` of the other columns, in order.

    Raises ValueError naming the column when lengths or ranges are wrong.
    """

    offsets: NDArray[np.int64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    wait_ps: NDArray[np.int64]

    def __post_init__(self) -> None:
        size = self.prompt_tokens.size
        lowest: dict[str, tuple[NDArray[Any], int]] = {
            "prompt_tokens": (self.prompt_tokens, 1),
            "output_tokens": (self.output_tokens, 1),
            "wait_ps": (self.wait_ps, 0),
        }
        for column, (values, low) in lowest.items():
            if values.shape != (size,):
                raise ValueError(f"stages.{column}: shape {values.shape}, wanted ({size},)")
            if size and values.min() < low:
                raise ValueError(f"stages.{column}: smallest value {values.min()}, from {low}")
        if size and self.wait_ps.max() > MAX_WAIT_PS:
            raise ValueError(f"stages.wait_ps: {self.wait_ps.max()} is beyond {MAX_WAIT_PS}")
        offsets = self.offsets
        if offsets.ndim != 1 or not offsets.size or offsets[0] != 0 or offsets[-1] != size:
            raise ValueError("stages.offsets: wanted n + 1 entries from 0 to the number of stages")
        counts = np.diff(offsets)
        if counts.size and not 0 <= counts.min() <= counts.max() <= MAX_STAGES:
            raise ValueError(f"stages.offsets: a row has 0 to {MAX_STAGES} stages")

    @property
    def counts(self) -> NDArray[np.int64]:
        """Stages of each row."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each stage."""
        return np.repeat(np.arange(self.offsets.size - 1, dtype=np.int64), self.counts)

    def per_row(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Sums over the stages of each row of a column of stages."""
        sums = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
        found: NDArray[np.int64] = sums[self.offsets[1:]] - sums[self.offsets[:-1]]
        return found

    def take(self, rows: NDArray[np.int64]) -> Stages:
        """The stages of the rows with these indices, in this order."""
        where, offsets = spans(self.offsets, rows)
        return Stages(
            offsets=offsets,
            prompt_tokens=self.prompt_tokens[where],
            output_tokens=self.output_tokens[where],
            wait_ps=self.wait_ps[where],
        )


def spans(
    offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of all entries of these rows in a column with offsets, and their new offsets."""
    starts, ends = offsets[:-1][rows], offsets[1:][rows]
    lengths = ends - starts
    new = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    # Index of every wanted entry: position inside its row plus the row's old start.
    return np.arange(new[-1]) + np.repeat(starts - new[:-1], lengths), new


class StagesBuilder:
    """Collects stages in typed arrays, rows in order; rows without stages cost nothing."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._prompts, self._outputs = array("i"), array("i")
        self._waits = array("q")

    def add(self, row: int, prompt_tokens: int, output_tokens: int, wait_ps: int) -> None:
        """Append one stage to a row; no row before the last may come again."""
        self._rows.append(row)
        self._prompts.append(prompt_tokens)
        self._outputs.append(output_tokens)
        self._waits.append(wait_ps)

    def build(self, num_rows: int) -> Stages | None:
        """The stages; None if there is none."""
        if not self._rows:
            return None
        counts = np.bincount(np.frombuffer(self._rows, dtype=np.int64), minlength=num_rows)
        return Stages(
            offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            prompt_tokens=np.frombuffer(self._prompts, dtype=np.int32),
            output_tokens=np.frombuffer(self._outputs, dtype=np.int32),
            wait_ps=np.frombuffer(self._waits, dtype=np.int64),
        )
