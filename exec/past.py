"""What an earlier process has achieved of a job, as the next one needs it. It reads a journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from batchgen.job.journal import Journal
from batchgen.job.rows import JobRow

Ints = npt.NDArray[np.int32]

NOTHING: Ints = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """`answered` [rows of the input, up to the last that is]; `produced`: tokens by (row, sample).
    `now`: what chat templates take for the time, None: the time."""

    answered: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    produced: Mapping[tuple[int, int], Ints] = field(default_factory=dict)
    now: datetime | None = None

    @classmethod
    def of(cls, journal: Journal, now: datetime | None) -> Past:
        return cls(answered=journal.answered(), produced=journal.produced(), now=now)

    def has_answered(self, index: int) -> bool:
        return index < len(self.answered) and bool(self.answered[index])

    def tokens(self, row: JobRow) -> Ints:
        """What the row had produced, if it can go on from there. A row that tells log probabilities
        begins again: nobody kept those. So does one whose tokens leave nothing to produce."""
        if row.sampling.logprobs is not None:
            return NOTHING
        found = self.produced.get((row.index, row.sample), NOTHING)
        return found[: row.max_output - 1]
