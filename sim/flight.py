"""The passes of one engine's launched step: how many, when each ends, who ends where.

Closed forms instead of passes: a property test walks the same steps pass by pass. k is the decode
clock, q the pass counter. With lag 1 a row that ends stays for one more pass, and the step is
reported when the pass before its last ends.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from batchgen.cost.api import PassLoad
from batchgen.sim.rowbook import LOW, NEVER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.cost.api import CostModel
    from batchgen.sim.rowbook import RowBook
    from batchgen.step import Step

NORMAL_SPEED = 1000
"""Speed factors are integers in thousandths of the normal pass time, so that times stay exact."""
FAR = 1 << 60


class Flight:
    """The running set and the launched step of one engine. Times are ps of the run.

    step: launched and not reported; begin_ps: when its first pass begins (or began); passes: how
    many it will run; report_ps: when it is reported; end_ps: when its last pass ends.
    """

    __slots__ = (
        "_ends",
        "_finishes",
        "_gone",
        "_loads",
        "_pieces",
        "begin_ps",
        "book",
        "busy",
        "cost",
        "counts",
        "covered_ps",
        "end_ps",
        "engine",
        "heap",
        "k",
        "lag",
        "num_ranks",
        "offsets",
        "passes",
        "q",
        "report_ps",
        "speed",
        "static",
        "step",
        "why",
    )

    def __init__(self, engine: int, book: RowBook, cost: CostModel, lag: int) -> None:
        self.engine, self.book, self.lag = engine, book, lag
        self.speed = NORMAL_SPEED
        self.end_ps = self.covered_ps = self.begin_ps = self.report_ps = 0
        self.q = self.k = 0
        self.static = False  # whether the newest step keeps dead rows
        self.reset(cost)

    def reset(self, cost: CostModel) -> None:
        """No row runs, in a layout of this cost."""
        self.cost = cost
        self.num_ranks = cost.num_ranks
        self.counts = [0] * self.num_ranks
        self.offsets = [0] * self.num_ranks
        self.heap: list[int] = []  # (finish + 1) << 32 | row
        self.step: Step | None = None
        self.busy = False  # the pass before begin_ps is unreported
        self.passes = 0
        self.why = "n"
        self._finishes: list[tuple[int, int]] = []  # (finish, row) taken off the heap
        self._ends: NDArray[np.int64] | None = None  # end of every pass from begin_ps on, explicit
        self._pieces: list[tuple[int, int, int, int, int]] | None = None
        self._gone: list[tuple[int, int, int]] = []
        self._loads: PassLoad | None = None

    # -- the running set --------------------------------------------------------------------------

    def add(self, row: int, produced: int, k: int, *, counted: bool = True) -> None:
        """The row decodes from decode pass k on; it has produced so many tokens."""
        book = self.book
        table = book.table
        finish = k + book.total[row] - produced - 1
        book.finish[row] = finish
        book.device[row] = self.engine
        heapq.heappush(self.heap, (finish + 1) << 32 | row)
        if counted:
            offset = table.v_prompt[row] + produced - 1 - k
            rank = table.v_rank[row]
            self.counts[rank] += 1
            self.offsets[rank] += offset
            book.offset[row] = offset
            book.rank[row] = rank
            book.counted[row] = 1

    def remove(self, row: int) -> None:
        """The row decodes no more. One that ended in the pass in flight is still to be reported."""
        book = self.book
        if not book.counted[row] or book.device[row] != self.engine:
            return
        self._uncount(row)
        if not (self.lag and NEVER < book.finish[row] < self.k):
            book.finish[row] = NEVER

    def _uncount(self, row: int) -> None:
        book = self.book
        rank = book.rank[row]
        self.counts[rank] -= 1
        self.offsets[rank] -= book.offset[row]
        book.counted[row] = 0

    def clear(self) -> None:
        """The device is lost: its rows are in no running set."""
        book = self.book
        for entry in self.heap:
            self._forget(entry & LOW, book)
        for _, row in self._finishes:
            self._forget(row, book)

    def _forget(self, row: int, book: RowBook) -> None:
        if book.device[row] == self.engine:
            book.device[row] = -1
            book.counted[row] = 0
            book.finish[row] = NEVER

    def _next_finish(self) -> int:
        """The decode pass of the earliest end, dropping dead entries of the heap."""
        heap, finish, device, me = self.heap, self.book.finish, self.book.device, self.engine
        while heap:
            entry = heap[0]
            row = entry & LOW
            if finish[row] == (entry >> 32) - 1 and device[row] == me:
                return finish[row]
            heapq.heappop(heap)
        return FAR

    def _pop_until(self, last: int) -> list[tuple[int, int]]:
        """(finish, row) of every end up to decode pass `last`, in order, taken off the heap."""
        heap, finish, device, me = self.heap, self.book.finish, self.book.device, self.engine
        found: list[tuple[int, int]] = []
        top = (last + 2) << 32
        while heap and heap[0] < top:
            entry = heapq.heappop(heap)
            row, at = entry & LOW, (entry >> 32) - 1
            if finish[row] == at and device[row] == me and not (found and found[-1] == (at, row)):
                found.append((at, row))
        return found

    # -- launch -----------------------------------------------------------------------------------

    def launch(self, step: Step, now: int) -> None:
        """Join and leave, find the ends, sum the pass times."""
        if step.left:
            for row in step.left:
                self.remove(row)
        if step.joined:
            produced, k = self.book.table.v_produced, self.k
            for row in step.joined:
                self.add(row, produced[row], k)
        self.busy = self.lag == 1 and self.end_ps > self.covered_ps
        begin = self.end_ps if self.end_ps > now else now
        if not self.busy:
            self.covered_ps = begin
        self.begin_ps, self.step, self.static = begin, step, step.until == "all"
        self._ends = self._pieces = self._loads = None
        self._finishes, self._gone = [], []
        self.why = "n"
        n, k, lag = step.n, self.k, self.lag
        first = self._next_finish()
        if step.until == "first":
            offset = first - k if step.decode else (-1 if first < k else FAR)
            if offset + 1 + lag < n:
                n = max(1, offset + 1 + lag)
                if n < step.n:
                    self.why = "finish"
        elif step.decode and first < k + n:
            n = self._ends_inside(step, n)
        self._set_passes(n)

    def _ends_inside(self, step: Step, n: int) -> int:
        """Rows end within the step and (until "n") leave it; returns its passes."""
        book, k, lag = self.book, self.k, self.lag
        self._finishes = self._pop_until(k + n - 1)
        living = [item for item in self._finishes if book.counted[item[1]]]
        if not step.chunks and len(living) == self._num_living():
            last = max(1, living[-1][0] - k + 1 + lag)
            if last < n:
                n, self.why = last, "finish"
        if step.until == "n":
            rank = book.rank
            self._gone = [
                (finish - k + 1 + lag, rank[row], book.offset[row]) for finish, row in living
            ]
        return n

    def _num_living(self) -> int:
        """Counted rows that will end: all but the dead of a static batch."""
        if self.step is not None and self.step.until == "all":
            finish, counted, me = self.book.finish, self.book.counted, self.engine
            rows = {entry & LOW for entry in self.heap} | {row for _, row in self._finishes}
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

    # -- times ------------------------------------------------------------------------------------

    def elapsed(self, passes: int) -> int:
        """Time of the first `passes` passes of the step."""
        if passes <= 0:
            return 0
        step = self.step
        assert step is not None
        if self._ends is None and self.num_ranks == 1 and self.speed == NORMAL_SPEED:
            if step.chunks:
                if passes == 1:
                    return self._one_pass(step)
            elif self._gone:
                return self._piecewise(step, passes)
            else:
                return self._affine(step, self.counts[0], self.offsets[0], self.k + 1, passes)
        if self._ends is None:
            self._ends = np.cumsum(self.pass_times(step, self.passes))
        return int(self._ends[passes - 1])

    def _affine(self, step: Step, count: int, offsets: int, k1: int, passes: int) -> int:
        """One rank, decodes only, nobody leaves: exact in integers."""
        if not count:
            return 0
        c0, slope = self.cost.decode_affine(count, step.checkpoint == "host")
        context = offsets + count * k1
        return passes * (c0 + slope * context) + slope * count * (passes * (passes - 1) // 2)

    def _piecewise(self, step: Step, passes: int) -> int:
        """One rank, decodes only, rows leave: affine between the passes at which they do.

        Pieces are (first pass, rows, their offsets, time before, first decode clock), made once.
        """
        if self._pieces is None:
            count, offsets, k = self.counts[0], self.offsets[0], self.k
            pieces, at, before = [(0, count, offsets, 0, k + 1)], 0, 0
            for index, _, offset in self._gone:
                if index > at:
                    before += self._affine(step, count, offsets, k + 1 + at, index - at)
                    at = index
                count -= 1
                offsets -= offset
                piece = (at, count, offsets, before, k + 1 + at)
                if pieces[-1][0] == at:
                    pieces[-1] = piece
                else:
                    pieces.append(piece)
            self._pieces = pieces
        pieces = self._pieces
        low, high = 0, len(pieces) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if pieces[middle][0] < passes:
                low = middle
            else:
                high = middle - 1
        first, count, offsets, before, k1 = pieces[low]
        return before + self._affine(step, count, offsets, k1, passes - first)

    def _one_pass(self, step: Step) -> int:
        """One rank, one pass with chunks, by scalars."""
        count = self.counts[0] if step.decode else 0
        tokens = pairs = reads = 0
        samples = count
        pad = step.until == "all" and max(size for _, _, size, _ in step.chunks)
        for _, start, size, last in step.chunks:
            if pad:
                size = pad
            tokens += size
            pairs += size * (size + 2 * start)
            reads += start
            samples += last
        return self.cost.pass_one_ps(
            count,
            self.offsets[0] + count * (self.k + 1) if count else 0,
            tokens,
            pairs,
            reads,
            samples,
            tokens + count if step.checkpoint else 0,
        )

    def load(self, step: Step, passes: int) -> PassLoad:
        """The first `passes` passes of the step as arrays [ranks, passes]."""
        load = PassLoad.zeros(self.num_ranks, passes)
        ks = np.arange(passes, dtype=np.int64)
        if step.decode:
            leaves = np.zeros((2, self.num_ranks, passes), dtype=np.int64)
            for index, rank, offset in self._gone:
                if index < passes:
                    leaves[0, rank, index] += 1
                    leaves[1, rank, index] += offset
            gone = leaves.cumsum(axis=2)
            load.decodes[:] = np.array(self.counts, dtype=np.int64)[:, None] - gone[0]
            offsets = np.array(self.offsets, dtype=np.int64)[:, None] - gone[1]
            load.context[:] = offsets + load.decodes * (self.k + 1 + ks)
            load.samples[:] = load.decodes
        rank_of = self.book.table.v_rank
        longest: dict[int, int] = {}
        if step.until == "all":
            for row, _, size, _ in step.chunks:
                longest[rank_of[row]] = max(longest.get(rank_of[row], 0), size)
        for row, start, size, last in step.chunks:
            rank = rank_of[row]
            padded = longest.get(rank, size)
            starts = start + size * ks
            load.chunk_tokens[rank] += padded
            load.chunk_pairs[rank] += (starts + padded) ** 2 - starts**2
            load.chunk_reads[rank] += starts
            load.samples[rank] += last
        if step.checkpoint == "host":
            load.checkpoint[:] = load.decodes + load.chunk_tokens
        return load

    def pass_times(self, step: Step, passes: int) -> NDArray[np.int64]:
        """Duration of every pass in ps, at the speed of now."""
        times = self.cost.pass_ps(self.load(step, passes))
        return times if self.speed == NORMAL_SPEED else times * self.speed // NORMAL_SPEED

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
        if self.lag and not self.busy and self.begin_ps == now and high > 1:
            low = 2  # its first pass has begun with the launch
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
        if speed == self.speed:
            return False
        step = self.step
        if step is None:
            self.speed = speed
            return False
        begun = 0
        if self.begin_ps < now:
            begun = self._num_ended(now) + 1
        elif self.begin_ps == now and not self.busy:
            begun = 1
        kept = min(self.passes, max(1, self._first_report(now, False)))
        ends = [self.elapsed(count) for count in range(1, min(begun, kept) + 1)]
        if self.passes > kept:
            self.why = "cut"
        self.speed = speed
        if len(ends) < kept:
            times = self.pass_times(step, kept)
            for index in range(len(ends), kept):
                ends.append((ends[-1] if ends else 0) + int(times[index]))
        self._ends = np.array(ends, dtype=np.int64)
        self._set_passes(kept)
        return True

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
        done = self._outcomes(limit, step, k)
        if step.chunks:
            self._prompts_done(step, k1)
            if not lag:  # those whose first token is their last
                for finish, row in self._pop_until(k1 - 1):
                    done.append((row, finish, self.report_ps))
                    self._ended(row)
        self.q, self.k, self.step = step.q0 + self.passes, k1, None
        self._gone, self._pieces = [], None
        return self.q, done

    def _prompts_done(self, step: Step, k1: int) -> None:
        """Rows whose last chunk ran decode from now on, unless they are handed over."""
        produced, total = self.book.table.v_produced, self.book.total
        for row, _, _, last in step.chunks:
            if last:
                have = produced[row] + 1  # the runtime has not heard of it yet
                if not step.hand or total[row] == have:
                    self.add(row, have, k1, counted=not step.hand)

    def drain(self) -> list[tuple[int, int, int]]:
        """With lag: the last pass has ended and nothing was launched behind it."""
        found = self._pop_until(self.k - 1)
        done = []
        for finish, row in found:
            done.append((row, finish, self.end_ps))
            self._ended(row)
        return done

    def _outcomes(self, limit: int, step: Step, k: int) -> list[tuple[int, int, int]]:
        """Rows that ended by decode pass `limit`, with the times of their last tokens."""
        heap = self.heap
        found = self._finishes
        if heap and heap[0] < (limit + 2) << 32:
            found = found + self._pop_until(limit)
        if not found:
            return []
        self._finishes = []
        done = [
            (row, finish, self._time_of(finish, k, step))
            for finish, row in found
            if finish <= limit
        ]
        for finish, row in found:
            if finish > limit:
                heapq.heappush(heap, (finish + 1) << 32 | row)
        for row, _, _ in done:
            self._ended(row)
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
            self._uncount(row)

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
            found = sorted({*self._finishes, *self._pop_until(k_end - 1)})
            for finish, row in found:
                if finish < k_end and self.book.finish[row] == finish:
                    done.append((row, finish, self._time_of(finish, self.k, step)))
                    self._forget(row, self.book)
            self.k = k_end
        elif lag and self.end_ps > self.covered_ps and self.last_end() >= now:
            end -= 1
        self.q = end
        return end, done

    def last_end(self) -> int:
        """When the newest pass before the launched step ends."""
        return self.begin_ps if self.step is not None else self.end_ps
