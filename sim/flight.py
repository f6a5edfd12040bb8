"""The passes of one engine's launched step: how many, when each ends, who ends in which.

Closed forms instead of passes: a property test walks the same steps pass by pass. k is the decode
clock, q the pass counter. With lag 1 a row that ends stays for one more pass, and the step is
reported when the pass before its last ends.
"""

from __future__ import annotations

from heapq import heappush
from typing import TYPE_CHECKING

from batchgen.sim.passtimes import FAR, NONE, Leave, PassTimes
from batchgen.sim.rowbook import LOW, NEVER
from batchgen.sim.running import RunningSet

if TYPE_CHECKING:
    from batchgen.cost.api import CostModel
    from batchgen.sim.rowbook import RowBook
    from batchgen.step import Step

NO_STAGES: list[int] = []
NO_RANK: list[int] = []


class Flight(RunningSet):
    """The launched step of one engine, on its running set. Times are ps of the run.

    step: launched and not reported; begin_ps: when its first pass begins (or began); passes: how
    many it will run; report_ps: when it is reported; end_ps: when its last pass ends.
    """

    __slots__ = (
        "_behind_ps",
        "begin_ps",
        "busy",
        "cost",
        "covered_ps",
        "elapsed",
        "end_ps",
        "passes",
        "q",
        "report_ps",
        "static",
        "step",
        "times",
        "why",
    )

    def __init__(
        self,
        engine: int,
        book: RowBook,
        cost: CostModel,
        lag: int,
        times: PassTimes | None = None,
    ) -> None:
        super().__init__(engine, book, lag)
        self.times = PassTimes(book.table) if times is None else times
        self.elapsed = self.times.elapsed  # of the newest step
        self.end_ps = self.covered_ps = self.begin_ps = self.report_ps = 0
        self.q = 0
        self.static = False  # whether the newest step keeps dead rows
        self.reset(cost)

    def reset(self, cost: CostModel) -> None:
        """No row runs, in a layout of this cost."""
        self.cost = cost
        self.times.use(cost)
        self.empty(cost.num_ranks, detailed=cost.detailed)
        self.step: Step | None = None
        self.busy = False  # the pass before begin_ps is unreported
        self.passes = 0
        self.why = "n"
        self._behind_ps = 0  # with lag: what the last pass of the newest step waited for the link

    # -- launch -----------------------------------------------------------------------------------

    def launch(self, step: Step, now: int) -> None:
        """Join and leave, find the ends, sum the pass times."""
        if step.left:
            for row in step.left:
                self.remove(row)
        k, lag, n = self.k, self.lag, step.n
        if step.joined:
            produced = self.book.table.v_produced
            for row in step.joined:
                self.add(row, produced[row], k)
        begin = self.end_ps if self.end_ps > now else now
        if lag and self.end_ps > self.covered_ps:
            self.busy = True
        else:
            self.busy = False
            self.covered_ps = begin
        self.begin_ps, self.step, self.static = begin, step, step.until == "all"
        if step.paused and not self.heaps:
            self.part()
        if self.finishes:
            self.finishes = []
        self.why = "n"
        gone = NONE
        first = self.next_finish_of_all(step.paused) if self.heaps else self.next_finish()
        if step.until == "first":
            offset = first - k if step.decode else (-1 if first < k else FAR)
            if offset + 1 + lag < n:
                n = max(1, offset + 1 + lag)
                if n < step.n:
                    self.why = "finish"
        elif step.decode and first < k + n:
            n, gone = self._ends_inside(step, n)
        counts, offsets = self._decoding(step.paused)
        if self.members is None:
            self.times.launch(step, n, k, counts, offsets, gone)
        else:
            own, behind, paused = self.book.offset, self.behind, step.paused
            members = [
                (rank, own[row] - behind[rank])
                for row, rank in self.members.items()
                if rank not in paused
            ]
            self.times.launch(step, n, k, counts, offsets, gone, members)
        self.passes = n
        if lag:
            self._set_passes(n)
        else:
            self.report_ps = self.end_ps = begin + self.elapsed(n)

    def _decoding(self, paused: list[int]) -> tuple[list[int], list[int]]:
        """`counts` and `offsets` of the rows that decode while these ranks pause."""
        if not paused:
            return self.counts, self.offsets
        counts, offsets = self.counts.copy(), self.offsets.copy()
        for rank in paused:
            counts[rank] = offsets[rank] = 0
        return counts, offsets

    def base(self) -> tuple[int, int, int]:
        """(rows that decode, the sum of their offsets, decode clock) before the launched step."""
        paused = self.step.paused if self.step is not None else NO_RANK
        counts, offsets = self._decoding(paused)
        if self.num_ranks == 1:
            return counts[0], offsets[0], self.k
        return sum(counts), sum(offsets), self.k

    def _until(self, last: int, paused: list[int]) -> list[tuple[int, int]]:
        """Ends up to decode pass `last`, taken off the heap."""
        return self.pop_all_until(last, paused) if self.heaps else self.pop_until(last)

    def _ends_inside(self, step: Step, n: int) -> tuple[int, list[Leave]]:
        """Rows end within the step and (until "n") leave it; its passes, and who leaves when."""
        book, k, lag = self.book, self.k, self.lag
        self.finishes = self._until(k + n - 1, step.paused)
        counted = book.counted
        living = [item for item in self.finishes if counted[item[1]]]
        if not step.chunks and len(living) == self._num_living():
            last = max(1, living[-1][0] - k + 1 + lag)
            if last < n:
                n, self.why = last, "finish"
        if step.until != "n":
            return n, NONE
        rank, offset, behind = book.rank, book.offset, 1 + lag - k
        if self.num_ranks == 1:
            return n, [(finish + behind, 0, offset[row]) for finish, row in living]
        late = self.behind
        return n, [
            (finish + behind, rank[row], offset[row] - late[rank[row]]) for finish, row in living
        ]

    def _num_living(self) -> int:
        """Counted rows that will end: all but the dead of a static batch."""
        if self.step is not None and self.step.until == "all":
            finish, counted, me = self.book.finish, self.book.counted, self.engine
            rows = {entry & LOW for entry in self.entries()} | {row for _, row in self.finishes}
            return sum(
                1
                for row in rows
                if counted[row] and self.book.device[row] == me and finish[row] > NEVER
            )
        return sum(self.counts)

    def _set_passes(self, passes: int) -> None:
        self.passes = passes
        begin = self.begin_ps
        if self.lag == 0:
            self.report_ps = self.end_ps = begin + self.elapsed(passes)
        else:
            self.report_ps = begin + self.elapsed(passes - 1)
            self.end_ps = begin + self.elapsed(passes)

    def goes_on(self, now: int) -> bool:
        """At the time of the report: whether it is none, because another pass has just begun."""
        return False

    def worked(self, now: int) -> int:
        """Time of the passes that ended since this was asked, at a report."""
        duration = now - self.covered_ps
        self.covered_ps = now
        if self.times.waits or self._behind_ps:
            duration -= self._waited()
        return duration

    def _waited(self) -> int:
        """Time that these passes waited for copies on the host link: no slowness of theirs."""
        waits, last = self.times.waits, self.passes - self.lag
        told, self._behind_ps = self._behind_ps, waits.get(last, 0) if self.lag else 0
        told += sum(wait for index, wait in waits.items() if index < last)
        waits.clear()
        return told

    def stage_ps(self, passes: int) -> list[int]:
        """Time that passes of the newest step took in each stage of a pipeline; else nothing."""
        return NO_STAGES

    # -- the host link ----------------------------------------------------------------------------

    @property
    def uses_link(self) -> bool:
        """Whether passes of the launched step move something over the host link."""
        step = self.step
        return step is not None and (self.cost.streams or step.checkpoint == "host")

    def num_begun(self, now: int) -> int:
        """Passes of the launched step that had begun before now, or were launched now."""
        if self.begin_ps < now:
            return min(self._num_ended(now) + 1, self.passes)
        return 1 if self.begin_ps == now and not self.busy else 0

    def wait(self, first: int, free_ps: list[int]) -> None:
        """Passes of the launched step from `first` on begin with a link that is busy so long."""
        if first < self.passes:
            self.times.wait(first, self.passes, self.begin_ps, free_ps)
            self._set_passes(self.passes)

    # -- ending early -----------------------------------------------------------------------------

    def cut(self, now: int, *, after: bool) -> bool:
        """Keep the fewest passes whose report is not in the past; True if those are fewer.

        after: a report at this very time is in the past already.
        """
        if self.step is None or self.passes < 2:
            return False
        passes = self._first_report(now, after)
        if passes >= self.passes:
            return False
        self.why = "cut"
        self._set_passes(passes)
        return True

    def _first_report(self, now: int, after: bool) -> int:
        low, high = 1, self.passes
        while low < high:
            middle = (low + high) // 2
            report = self.begin_ps + self.elapsed(middle - self.lag)
            if report > now or (report == now and not after):
                high = middle
            else:
                low = middle + 1
        return low

    def change_speed(self, speed: int, now: int) -> bool:
        """Passes that begin after now run at another speed; the step ends as after a cut."""
        times = self.times
        if speed == times.speed:
            return False
        if self.step is None:
            times.speed = speed
            return False
        self._change(speed, self.cost, now)
        return True

    def change_cost(self, cost: CostModel, now: int) -> bool:
        """The same for another cost of the same layout."""
        self.cost = cost
        if self.step is None:
            self.times.cost = cost
            return False
        self._change(self.times.speed, cost, now)
        return True

    def _change(self, speed: int, cost: CostModel, now: int) -> None:
        begun = self.num_begun(now)
        kept = min(self.passes, max(1, self._first_report(now, False)))
        if self.passes > kept:
            self.why = "cut"
        self.times.change(speed, cost, begun, kept)
        self._set_passes(kept)

    def _num_ended(self, now: int) -> int:
        """Passes of the step that had ended before `now`."""
        low, high = 0, self.passes
        while low < high:
            middle = (low + high + 1) // 2
            if self.begin_ps + self.elapsed(middle) < now:
                low = middle
            else:
                high = middle - 1
        return low

    # -- the report -------------------------------------------------------------------------------

    def land(self) -> tuple[int, list[tuple[int, int, int]]]:
        """The step is reported: (end, [(row, finish, time of its last token)])."""
        step, lag, k = self.step, self.lag, self.k
        assert step is not None
        k1 = k + self.passes if step.decode else k
        limit = k1 - 2 if lag and step.decode else k1 - 1
        heap = self.heap
        if self.finishes or self.heaps or (heap and heap[0] < (limit + 2) << 32):
            done = self._outcomes(limit, step, k)
        else:
            done = []
        if step.paused:
            self.fall_behind(step.paused, self.passes)
        if step.chunks:
            self._prompts_done(step, k1)
            if not lag and (self.heaps or (heap and heap[0] < (k1 + 1) << 32)):
                for finish, row in self._until(k1 - 1, NO_RANK):  # their first token is their last
                    done.append((row, finish, self.report_ps))
                    self._ended(row)
        self.q = end = step.q0 + self.passes
        self.k, self.step = k1, None
        return end, done

    def _prompts_done(self, step: Step, k1: int) -> None:
        """Rows whose last chunk ran decode from now on, unless they are handed over."""
        for row, _, _, last in step.chunks:
            if last:
                have = self.book.table.v_produced[row] + 1  # the runtime has not heard of it yet
                if not step.hand or self.book.total[row] == have:
                    self.add(row, have, k1, counted=not step.hand)

    def drain(self) -> list[tuple[int, int, int]]:
        """With lag: the last pass has ended and nothing was launched behind it."""
        found = self._until(self.k - 1, NO_RANK)
        done = []
        for finish, row in found:
            done.append((row, finish, self.end_ps))
            self._ended(row)
        return done

    def _outcomes(self, limit: int, step: Step, k: int) -> list[tuple[int, int, int]]:
        """Rows that ended by decode pass `limit`, with the times of their last tokens."""
        heap, found = self.heap, self.finishes
        if self.heaps or (heap and heap[0] < (limit + 2) << 32):
            ended = self._until(limit, step.paused)
            found = found + ended if found else ended
        self.finishes = []
        done: list[tuple[int, int, int]] = []
        time, at_ps = NEVER, 0  # rows are in the order of their ends
        for finish, row in found:
            if finish > limit:
                finish -= self._behind(row)
                if self.heaps:
                    heap = self.heaps[self.book.rank[row]]
                heappush(heap, (finish + 1) << 32 | row)
                continue
            if finish != time:
                time, at_ps = finish, self._time_of(finish, k, step)
            done.append((row, finish, at_ps))
        ends, counted = self.book.finish, self.book.counted
        for row, _, _ in done:
            ends[row] = NEVER
            if counted[row] and not self.static:
                self.uncount(row)
        return done

    def _time_of(self, finish: int, k: int, step: Step) -> int:
        """When the pass ended that computed a row's last token."""
        if step.decode and finish >= k and not (step.chunks and self.lag == 0):
            return self.begin_ps + self.elapsed(finish - k + 1)
        return self.begin_ps if self.lag else self.report_ps

    def _ended(self, row: int) -> None:
        book = self.book
        book.finish[row] = NEVER
        if book.counted[row] and not self.static:
            self.uncount(row)

    def lose(self, now: int) -> tuple[int, list[tuple[int, int, int]]]:
        """The device is lost: (passes below this had ended, outcomes that were not reported). Only
        passes that ended before `now` count."""
        step, lag = self.step, self.lag
        done: list[tuple[int, int, int]] = []
        end = self.q
        if step is not None and not (lag and self.busy and self.begin_ps >= now):
            ended = self._num_ended(now)
            end = step.q0 + ended
            k_end = self.k + (ended if step.decode else 0)
            found = sorted({*self.finishes, *self._until(k_end - 1, step.paused)})
            for finish, row in found:
                if finish < k_end and self.book.finish[row] == finish - self._behind(row):
                    done.append((row, finish, self._time_of(finish, self.k, step)))
                    self.forget(row, self.book)
            self.k = k_end
        elif lag and self.end_ps > self.covered_ps and self.last_end() >= now:
            end -= 1
        self.q = end
        return end, done

    def last_end(self) -> int:
        """When the newest pass before the launched step ends."""
        return self.begin_ps if self.step is not None else self.end_ps
