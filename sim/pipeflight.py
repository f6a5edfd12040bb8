"""The passes of one batch of a pipeline: a `Flight` that goes pass by pass.

When a pass ends depends on what other batches have in the stages, so there is no closed form: every
pass of a step begins in an event of its own, when its batch's pass before has left the last stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.sim.flight import Flight
from batchgen.sim.passtimes import FAR, NOBODY, Leave, Member, PassTimes

if TYPE_CHECKING:
    from batchgen.cost.api import CostModel, RankLoad
    from batchgen.sequence import Table
    from batchgen.sim.pipeline import Pipeline
    from batchgen.sim.rowbook import RowBook
    from batchgen.step import Step


class PipeTimes(PassTimes):
    """What the passes of a step hold, one after the other, and when those that have begun end."""

    __slots__ = ("_at", "_chunks", "_count", "_offset", "ends")

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.ends: list[int] = []  # of the passes that have begun, from the begin of the step
        self._chunks = [0] * 6
        self._count = self._offset = self._at = 0

    def launch(
        self,
        step: Step,
        passes: int,
        k: int,
        counts: list[int],
        offsets: list[int],
        gone: list[Leave],
        members: list[Member] = NOBODY,
    ) -> None:
        self.step, self.passes, self.k = step, passes, k
        self.counts, self.offsets, self._gone = counts, offsets, gone
        self.ends = []
        self._at = 0
        self._count, self._offset = (counts[0], offsets[0]) if step.decode else (0, 0)
        self._chunks = self._chunk_sums(step)[0]

    def elapsed(self, passes: int) -> int:
        """Time of the first passes, with all waits between them; FAR while one has not begun."""
        if passes <= 0:
            return 0
        return self.ends[passes - 1] if passes <= len(self.ends) else FAR

    def next_load(self) -> RankLoad:
        """What the next pass holds."""
        number, step = len(self.ends), self.step
        assert step is not None
        gone = self._gone
        while self._at < len(gone) and gone[self._at][0] <= number:
            self._count -= 1
            self._offset -= gone[self._at][2]
            self._at += 1
        count = self._count
        tokens, pairs, reads, more_pairs, more_reads, lasts = self._chunks
        return (
            count,
            self._offset + count * (self.k + 1 + number),
            tokens,
            pairs + more_pairs * number,
            reads + more_reads * number,
            count + lasts,
            tokens + count if step.checkpoint == "host" else 0,
        )


class PipeFlight(Flight):
    """The running set and the launched step of one batch. See `Flight`; here `report_ps` is when
    the next pass begins, or the step is reported, and `end_ps` when the pass in flight ends."""

    __slots__ = ("_alone_ps", "_flying", "_pipe", "_stage_ps", "_waits", "_worked_ps", "pipeline")

    def __init__(
        self, engine: int, book: RowBook, cost: CostModel, lag: int, pipeline: Pipeline
    ) -> None:
        self.pipeline = pipeline
        self._pipe = PipeTimes(book.table)
        super().__init__(engine, book, cost, lag, self._pipe)

    def reset(self, cost: CostModel) -> None:
        super().reset(cost)
        nothing = [0] * self.pipeline.cost.num_stages
        self._stage_ps, self._flying = nothing, nothing  # of the step's passes; of the last
        self._waits = False  # with lag: its first pass has begun, its turn has not come
        self._worked_ps = self._alone_ps = 0  # of passes that have ended; of the one in flight

    # -- passes -----------------------------------------------------------------------------------

    def launch(self, step: Step, now: int) -> None:
        super().launch(step, now)
        self._stage_ps = [0] * len(self._stage_ps)
        self._flying = self._stage_ps
        self._waits = self.lag > 0 and not self.busy
        if self.busy:  # its first pass begins when the one in flight ends
            self.report_ps = self.end_ps = self.begin_ps
            return
        self._begin_pass(now)
        if self._waits:
            self.report_ps = now

    def _begin_pass(self, now: int) -> None:
        load = self._pipe.next_load()
        self._flying, end, alone = self.pipeline.enter(load, now)
        self._pipe.ends.append(end - self.begin_ps)
        self._stage_ps = [a + b for a, b in zip(self._stage_ps, self._flying, strict=True)]
        self._worked_ps += self._alone_ps
        self._alone_ps = alone
        self.report_ps = self.end_ps = end

    def goes_on(self, now: int) -> bool:
        """The engine's turn: begin the next pass, if there is one. True: no report is due yet."""
        begun = len(self._pipe.ends)
        waits, self._waits = self._waits, False
        if begun >= self.passes:
            return False
        if waits:
            self.report_ps = self.end_ps
            return True
        self._begin_pass(now)
        return not self.lag or begun + 1 < self.passes

    def change_cost(self, cost: CostModel, now: int) -> bool:
        """The next pass asks the pipeline what it takes."""
        self.cost = self.times.cost = cost
        return False

    def cut(self, now: int, *, after: bool) -> bool:
        """End with the pass in flight, or with lag the one behind it: it is reported in a turn that
        is set already."""
        if self.step is None:
            return False
        passes = max(1, len(self._pipe.ends) + (0 if self._waits else self.lag))
        if passes < self.passes:
            self.why = "cut"
            self.passes = passes
        return False

    @property
    def uses_link(self) -> bool:
        """Checkpoints of a stage and copies do not queue with each other here."""
        return False

    # -- what is told -----------------------------------------------------------------------------

    def worked(self, now: int) -> int:
        """Time of the passes that ended since this was asked, each as if it were alone at the pace
        of the slowest stage: waiting for other batches is no slowness."""
        self.covered_ps = now
        if self.end_ps <= now:
            self._worked_ps += self._alone_ps
            self._alone_ps = 0
        told, self._worked_ps = self._worked_ps, 0
        return told

    def stage_ps(self, passes: int) -> list[int]:
        """Time that the first passes of the newest step took in each stage: all that have begun, or
        all but the last."""
        if passes >= len(self._pipe.ends):
            return self._stage_ps
        return [a - b for a, b in zip(self._stage_ps, self._flying, strict=True)]
