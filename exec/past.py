"""What an earlier process has achieved of a job, as the next one needs it. It reads a journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from batchgen.exec.job_rows import JobRows
from batchgen.job.journal import Journal

Ints = npt.NDArray[np.int32]


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

    def tokens(self, jobs: JobRows) -> dict[int, Ints]:
        """What rows of the scheduler had produced, of those that can go on from there: a row that
        tells log probabilities begins again, for nobody kept those."""
        found = {}
        for number, ids in jobs.places(self.produced).items():
            row = jobs[number]
            if row.sampling.logprobs is None and row.max_output > 1:
                found[number] = ids[: row.max_output - 1]
        return found
