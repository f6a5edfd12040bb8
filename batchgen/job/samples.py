"""Rows that want several answers: a scheduler's row per sample, and the samples of a row together
again. The one place that knows that these are not the rows of the input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Generic, TypeVar

from batchgen.job.rows import JobRow
from batchgen.job.sampling import sample_seed

Ended = TypeVar("Ended")


def samples(rows: Iterable[JobRow]) -> list[JobRow]:
    """A row per sample, in order, with a seed of its own; samples share the ids of their prompt."""
    return [sample_of(row, number) for row in rows for number in range(row.num_samples)]


def sample_of(row: JobRow, number: int) -> JobRow:
    """One of the samples of a row."""
    if row.num_samples == 1:
        return row
    return replace(
        row,
        sample=number,
        sampling=replace(row.sampling, seed=sample_seed(row.sampling.seed, number)),
    )


class SamplesOfRows(Generic[Ended]):
    """Keeps what samples left until the last one of their row has ended."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[int, Ended]] = {}

    def add(self, sample: JobRow, ended: Ended) -> list[Ended] | None:
        """One sample ended; returns what all samples of its row left, in their order, if it was the
        last."""
        if sample.num_samples == 1:
            return [ended]
        ours = self._waiting.setdefault(sample.index, {})
        ours[sample.sample] = ended
        if len(ours) < sample.num_samples:
            return None
        del self._waiting[sample.index]
        return [ours[number] for number in range(sample.num_samples)]
