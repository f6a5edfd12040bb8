"""Tokens of unfinished rows go to the journal now and then: a long row is never begun again."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from batchgen.exec.worker import Worker
from batchgen.job.journal import Journal
from batchgen.job.rows import JobRow

EVERY_S = 1.0
LEAST_TOKENS = 16
"""Newer tokens of a row that are worth a record; fewer are computed again."""


class Saving:
    """Called as the run goes on; `jobs` are the scheduler's rows, `begun` [jobs] the tokens that
    each of them has in the journal."""

    def __init__(
        self,
        journal: Journal,
        worker: Worker,
        jobs: Sequence[JobRow],
        begun: Sequence[int],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._journal = journal
        self._worker = worker
        self._jobs = jobs
        self._saved = np.array(begun, dtype=np.int64)
        self._every_s = every_s
        self._next_s = time.monotonic() + every_s

    def now_and_then(self) -> None:
        """Saves if it is time."""
        if time.monotonic() >= self._next_s:
            self.save(LEAST_TOKENS)
            self._next_s = time.monotonic() + self._every_s

    def save(self, least: int = 1) -> None:
        """What has been produced since the last time, of rows with at least so many tokens."""
        for row, ids in self._worker.rows.newer(self._saved):
            if len(ids) >= least:
                job = self._jobs[row]
                self._journal.tokens(job.index, job.sample, int(self._saved[row]), ids)
                self._saved[row] += len(ids)
