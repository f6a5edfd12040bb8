"""Carries out what a search asks for, in this process or on several. It chooses nothing: the same
answers come whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batchgen.report.record import RunRecord
from batchgen.search.estimate import Estimate, Estimator
from batchgen.search.space import Candidate
from batchgen.sweep.pool import Died, Stop, run_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A candidate to be simulated, on a share of the load or on all of it, until the time would be
    more than `limit_s` (None: to its end)."""

    candidate: Candidate
    limit_s: float | None
    is_whole: bool


class Crew:
    """Answers rounds of questions. workers: processes, forked for every round; 1: none, this one
    does it all, and keeps the record of the best whole run. tell: hears how many are asked for."""

    def __init__(
        self, estimator: Estimator, workers: int = 1, tell: Callable[[int], None] | None = None
    ) -> None:
        self.estimator, self.workers, self.tell = estimator, workers, tell
        self.best: tuple[Estimate, RunRecord] | None = None

    def answer(self, asks: Sequence[Ask]) -> list[Estimate]:
        """One estimate per question, in their order. Raises what the simulator raises."""
        if self.tell is not None:
            self.tell(len(asks))
        if self.workers < 2 or len(asks) < 2:
            return [self._one(ask) for ask in asks]

        def work(number: int) -> Estimate | None:
            try:
                return self._one(asks[number])
            except Exception:
                return None  # errors do not travel well: it is done again here

        done: dict[int, Any] = {}
        nobody = Stop(_nothing)
        for number, found in run_all(work, range(len(asks)), self.workers, nobody):
            done[number] = None if isinstance(found, Died) else found
        return [done[number] or self._one(ask) for number, ask in enumerate(asks)]

    def _one(self, ask: Ask) -> Estimate:
        if not ask.is_whole and not self.estimator.shares_are_whole(ask.candidate):
            return self.estimator.estimate(ask.candidate, ask.limit_s)
        found, record = self.estimator.whole(ask.candidate, ask.limit_s)
        if record is not None and (self.best is None or found.key < self.best[0].key):
            self.best = found, record
        return found


def _nothing() -> None:
    """Nobody is told."""


Answer = Callable[[Sequence[Ask]], list[Estimate]]
