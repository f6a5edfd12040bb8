"""When the passes of one launched step end. It knows neither rows that end nor the run's clock.

Closed forms where a step is affine, scalars for few passes, arrays for the rest: all give the same
integers (a test holds them together). k is the decode clock before the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batchgen.cost.api import PassDetail, PassLoad, RankLoad
from batchgen.errors import UserError
from batchgen.sim.faults import NORMAL_SPEED
from batchgen.units import MOST_PS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.cost.api import CostModel
    from batchgen.sequence import Table
    from batchgen.step import Step

BY_SCALARS = 32
"""So many ranks times passes take about as long by scalars as by arrays (some 100 us)."""

Leave = tuple[int, int, int]
"""(pass of the step from which on a row is gone, its rank, its offset)."""
NONE: list[Leave] = []

Member = tuple[int, int]
"""A row that decodes: (its rank, its offset)."""
NOBODY: list[Member] = []
FAR = 1 << 60


def too_long() -> UserError:
    """The run does not fit the clock."""
    return UserError(
        "the run takes longer than 106 days, which is all that its clock holds",
        remedy="give fewer rows (--limit) or more GPUs, or look for a rate that is far too low",
    )


class PassTimes:
    """Pass times of the newest step of one engine. counts, offsets: rows per rank that decode in
    its first pass, and the sum of their (computed tokens - k)."""

    __slots__ = (
        "_ends",
        "_fixed",
        "_gone",
        "_members",
        "_pieces",
        "_rise",
        "_table",
        "cost",
        "counts",
        "detailed",
        "k",
        "num_ranks",
        "offsets",
        "passes",
        "speed",
        "step",
        "waits",
    )

    def __init__(self, table: Table) -> None:
        self._table = table
        self.speed = NORMAL_SPEED
        self._gone = NONE
        self._members = NOBODY
        self.step: Step | None = None
        self.passes = self.k = 0
        self.waits: dict[int, int] = {}  # for the host link, by pass of the step

    def use(self, cost: CostModel) -> None:
        """Steps from now on cost this; nothing is launched."""
        self.cost = cost
        self.num_ranks = cost.num_ranks
        self.detailed = cost.detailed
        self.counts: list[int] = []
        self.offsets: list[int] = []
        self._ends: list[int] | None = []  # elapsed after 1, 2, ... passes, where made explicit
        self._pieces: list[tuple[int, int, int, int, int]] | None = None
        self._fixed = self._rise = 0  # pass j of an affine step takes fixed + rise * j
        self.waits.clear()

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
        """A step of so many passes; the lists stay as they are while it is in flight. members: the
        rows behind the counts, for a cost that is detailed."""
        self.step, self.passes, self.k = step, passes, k
        self.counts, self.offsets, self._gone = counts, offsets, gone
        if self.detailed:
            self._members = members
        elif self.speed == NORMAL_SPEED:
            if self.num_ranks == 1 and not step.chunks:
                self._ends = None
                if gone:
                    self._pieces = self._piecewise(step)
                else:
                    self._affine(step)
                return
            if passes * self.num_ranks <= BY_SCALARS and not gone:
                self._ends = self._by_scalars(step, passes)
                return
        self._ends = np.cumsum(self.pass_times(step, passes)).tolist()

    def elapsed(self, passes: int) -> int:
        """Time of the first `passes` passes of the step."""
        ends = self._ends
        if ends is not None:
            return ends[passes - 1] if passes > 0 else 0
        if self._pieces is not None:
            return self._in_pieces(passes)
        return passes * self._fixed + self._rise * (passes * (passes - 1) // 2)

    def missed(self, passes: int) -> int:
        """KV tokens that rows which have left would have read in the first `passes` passes."""
        first = self.k + 1
        tokens = 0
        for leaves, _, offset in self._gone:
            count = passes - leaves
            if count > 0:
                tokens += count * (offset + first + leaves) + count * (count - 1) // 2
        return tokens

    # -- one rank, decodes only -------------------------------------------------------------------

    def _affine(self, step: Step) -> None:
        """All its rows run in every pass."""
        self._pieces = None
        count = self.counts[0]
        self._fixed = self._rise = 0
        if count:
            fixed, slope = self.cost.decode_affine(count, step.checkpoint == "host")
            self._fixed = fixed + slope * (self.offsets[0] + count * (self.k + 1))
            self._rise = slope * count

    # -- the same, rows leave -------------------------------------------------------

    def _piecewise(self, step: Step) -> list[tuple[int, int, int, int, int]]:
        """The step is affine between the passes at which rows leave: (first pass of the piece, time
        before it, time of its first pass, rise from pass to pass, rows)."""
        counted, offsets, k1 = self.counts[0], self.offsets[0], self.k + 1
        affine, streams = self.cost.decode_affine, step.checkpoint == "host"
        pieces: list[tuple[int, int, int, int, int]] = []
        at = before = fixed = rise = 0
        if self._gone[0][0] > 0:
            fixed, slope = affine(counted, streams)
            fixed, rise = fixed + slope * (offsets + counted * k1), slope * counted
            pieces.append((0, 0, fixed, rise, counted))
        for index, (leaves, _, offset) in enumerate(self._gone):
            if leaves > at:
                span = leaves - at
                before += span * fixed + rise * (span * (span - 1) // 2)
                at = leaves
            counted -= 1
            offsets -= offset
            if index + 1 < len(self._gone) and self._gone[index + 1][0] == leaves:
                continue
            fixed = rise = 0
            if counted:
                fixed, slope = affine(counted, streams)
                fixed, rise = fixed + slope * (offsets + counted * (k1 + at)), slope * counted
            pieces.append((at, before, fixed, rise, counted))
        return pieces

    def _in_pieces(self, passes: int) -> int:
        pieces = self._pieces
        assert pieces is not None
        low, high = 0, len(pieces) - 1
        if passes > pieces[-1][0]:
            low = high
        while low < high:
            middle = (low + high + 1) // 2
            if pieces[middle][0] < passes:
                low = middle
            else:
                high = middle - 1
        first, before, fixed, rise, _ = pieces[low]
        passes -= first
        return before + passes * fixed + rise * (passes * (passes - 1) // 2)

    # -- few passes with prompt chunks, or alone: by scalars --------------------------------------

    def _by_scalars(self, step: Step, passes: int) -> list[int]:
        """From pass to pass contexts, pairs and reads rise evenly."""
        k1, decode, streams = self.k + 1, step.decode, step.checkpoint == "host"
        sums = self._chunk_sums(step)
        loads: list[RankLoad] = []
        for rank, (tokens, pairs, reads, _, _, lasts) in enumerate(sums):
            count = self.counts[rank] if decode else 0
            context = self.offsets[rank] + count * k1 if count else 0
            streamed = tokens + count if streams else 0
            loads.append((count, context, tokens, pairs, reads, count + lasts, streamed))
        if self.num_ranks == 1:
            return self._alone(loads[0], sums[0], passes)
        time = self.cost.time_ps(loads)
        ends = [time]
        for number in range(1, passes):
            time += self.cost.time_ps(
                [
                    (count, context + count * number, tokens, pairs + rise[3] * number,
                     reads + rise[4] * number, samples, streamed)
                    for (count, context, tokens, pairs, reads, samples, streamed), rise
                    in zip(loads, sums, strict=True)
                ]
            )  # fmt: skip
            ends.append(time)
        return ends

    def _alone(self, load: RankLoad, sums: list[int], passes: int) -> list[int]:
        """The same for one rank, which is most of what a run of small engines does."""
        count, context, tokens, pairs, reads, samples, streamed = load
        rise, further = sums[3], sums[4]
        one_ps = self.cost.pass_one_ps
        time = one_ps(count, context, tokens, pairs, reads, samples, streamed)
        ends = [time]
        for _ in range(1, passes):
            context += count
            pairs += rise
            reads += further
            time += one_ps(count, context, tokens, pairs, reads, samples, streamed)
            ends.append(time)
        return ends

    def _chunk_sums(self, step: Step) -> list[list[int]]:
        """Per rank: tokens, pairs and reads of the first pass, the rise of pairs and of reads from
        pass to pass, last chunks. A static batch pads its prompts to the longest of the rank."""
        if self.num_ranks == 1 and len(step.chunks) == 1:
            ((_, start, size, last),) = step.chunks
            return [[size, size * (size + 2 * start), start, 2 * size * size, size, last]]
        rank_of = self._table.v_rank
        sums = [[0, 0, 0, 0, 0, 0] for _ in range(self.num_ranks)]
        longest: list[int] = []
        if step.until == "all":
            longest = [0] * self.num_ranks
            for row, _, size, _ in step.chunks:
                longest[rank_of[row]] = max(longest[rank_of[row]], size)
        alone = self.num_ranks == 1
        for row, start, size, last in step.chunks:
            rank = 0 if alone else rank_of[row]
            padded = longest[rank] if longest else size
            one = sums[rank]
            one[0] += padded
            one[1] += padded * (padded + 2 * start)
            one[2] += start
            one[3] += 2 * padded * size
            one[4] += size
            one[5] += last
        return sums

    # -- any step, by arrays ----------------------------------------------------------------------

    def pass_times(self, step: Step, passes: int) -> NDArray[np.int64]:
        """Duration of every pass in ps, at the speed of now."""
        load = self.load(step, passes)
        if self.detailed:
            times = self.cost.pass_ps(load, self.detail(step, passes))
        else:
            times = self.cost.pass_ps(load)
        speed, longest = self.speed, int(times.max(initial=0))
        if longest * max(speed, NORMAL_SPEED) * passes > MOST_PS:  # their sum may not fit
            exact = [time * speed // NORMAL_SPEED for time in times.tolist()]
            if longest >= FAR or sum(exact) > MOST_PS:
                raise too_long()
            return np.array(exact, dtype=np.int64)
        return times if speed == NORMAL_SPEED else times * speed // NORMAL_SPEED

    def load(self, step: Step, passes: int) -> PassLoad:
        """The first `passes` passes of the step as arrays [ranks, passes]."""
        ranks = self.num_ranks
        load = PassLoad.zeros(ranks, passes)
        if step.decode:
            load.decodes[:] = np.array(self.counts, dtype=np.int64)[:, None]
            offsets = np.array(self.offsets, dtype=np.int64)[:, None]
            if self._gone:
                left, behind = self._left(passes)
                load.decodes -= left
                offsets = offsets - behind
            load.context[:] = load.decodes * np.arange(self.k + 1, self.k + 1 + passes) + offsets
            load.samples[:] = load.decodes
        if step.chunks:
            self._add_chunks(step, load, passes)
        if step.checkpoint == "host":
            load.checkpoint[:] = load.decodes + load.chunk_tokens
        return load

    def _left(self, passes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that have left before each pass, and the sum of their offsets [ranks, passes]."""
        rows, offsets = [0] * (self.num_ranks * passes), [0] * (self.num_ranks * passes)
        for index, rank, offset in self._gone:
            if index < passes:
                rows[rank * passes + index] += 1
                offsets[rank * passes + index] += offset
        left = np.array((rows, offsets), dtype=np.int64).reshape(2, self.num_ranks, passes)
        left.cumsum(axis=2, out=left)
        return left[0], left[1]

    def _add_chunks(self, step: Step, load: PassLoad, passes: int) -> None:
        columns = np.array(self._chunk_sums(step), dtype=np.int64).T[:, :, None]
        number = np.arange(passes, dtype=np.int64)
        load.chunk_tokens += columns[0]
        load.chunk_pairs += columns[1] + columns[3] * number
        load.chunk_reads += columns[2] + columns[4] * number
        load.samples += columns[5]

    # -- what sums leave out ----------------------------------------------------------------------

    def detail(self, step: Step, passes: int) -> PassDetail:
        """Extremes of the contexts and every prompt piece of the first `passes` passes."""
        longest, shortest = self._extremes(step, passes)
        number = np.arange(passes, dtype=np.int64)
        rank_of = self._table.v_rank
        ranks = [0 if self.num_ranks == 1 else rank_of[row] for row, _, _, _ in step.chunks]
        sizes = np.array([size for _, _, size, _ in step.chunks], dtype=np.int64)[:, None]
        starts = np.array([start for _, start, _, _ in step.chunks], dtype=np.int64)[:, None]
        starts = starts + sizes * number
        if step.until == "all":  # padded to the longest of the rank
            sizes = sizes.copy()
            for index, rank in enumerate(ranks):
                sizes[index] = max(
                    c[2] for c, r in zip(step.chunks, ranks, strict=True) if r == rank
                )
        return PassDetail(
            longest,
            shortest,
            np.array(ranks, dtype=np.int64),
            np.broadcast_to(sizes, (len(ranks), passes)),
            starts,
        )

    def _extremes(self, step: Step, passes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Most and fewest KV tokens that a row of a rank reads, by pass; 0 without rows."""
        longest = np.zeros((self.num_ranks, passes), dtype=np.int64)
        shortest = np.zeros((self.num_ranks, passes), dtype=np.int64)
        now = np.arange(self.k + 1, self.k + 1 + passes, dtype=np.int64)
        for rank in range(self.num_ranks if step.decode else 0):
            rows: dict[int, int] = {}  # by offset
            for at, offset in self._members:
                if at == rank:
                    rows[offset] = rows.get(offset, 0) + 1
            leaving = sorted((leaves, offset) for leaves, at, offset in self._gone if at == rank)
            for _, offset in leaving:
                rows[offset] -= 1
            stay = [offset for offset, count in rows.items() if count]
            most, fewest, end = max(stay, default=-FAR), min(stay, default=FAR), passes
            leaving.insert(0, (0, -FAR))
            for leaves, offset in reversed(leaving):  # backwards in time, rows come back
                if leaves < end:
                    if most > -FAR:
                        longest[rank, leaves:end] = now[leaves:end] + most
                        shortest[rank, leaves:end] = now[leaves:end] + fewest
                    end = leaves
                most, fewest = max(most, offset), min(fewest, offset)
        return longest, shortest

    # -- the host link ----------------------------------------------------------------------------

    def stream_ps(self, index: int) -> tuple[int, int]:
        """How long one pass keeps the host link busy, from the host and to it."""
        up, down = self._streams(index + 1)
        return up[index], down[index]

    def _streams(self, passes: int) -> tuple[list[int], list[int]]:
        """At the speed of now, as the passes themselves."""
        assert self.step is not None
        speed = self.speed
        up, down = self.cost.streams_ps(self.load(self.step, passes))
        if speed == NORMAL_SPEED:
            return up.tolist(), down.tolist()
        slow = [[time * speed // NORMAL_SPEED for time in lane.tolist()] for lane in (up, down)]
        return slow[0], slow[1]

    def wait(self, first: int, passes: int, begin_ps: int, free_ps: list[int]) -> None:
        """Of so many passes those from `first` on, which have not begun, find the host link busy
        until `free_ps`, from the host and to it. The first that streams in a direction waits there,
        and has it for itself; so no pass before it can make the next one wait.
        """
        streams = self._streams(passes)
        ends = [self.elapsed(count) for count in range(1, passes + 1)]
        before = at = ends[first - 1] if first else 0
        for index in range(first, passes):
            duration = ends[index] - before - self.waits.pop(index, 0)
            before = ends[index]
            longest = duration
            for lane in (0, 1):
                time = streams[lane][index]
                late = free_ps[lane] - begin_ps - at
                if time and late > 0:
                    longest = max(longest, late + time)
            if longest > duration:
                self.waits[index] = longest - duration
            at += longest
            ends[index] = at
        self._ends = ends

    # -- another speed ----------------------------------------------------------------------------

    def change(self, speed: int, cost: CostModel, begun: int, kept: int) -> None:
        """The first `begun` passes go on as they are; the step has `kept` of them in all, the rest
        at the new speed and cost."""
        step = self.step
        assert step is not None
        ends = [self.elapsed(count) for count in range(1, min(begun, kept) + 1)]
        self.speed, self.cost = speed, cost
        for index in [index for index in self.waits if index >= len(ends)]:
            del self.waits[index]
        if len(ends) < kept:
            times = self.pass_times(step, kept)
            for index in range(len(ends), kept):
                ends.append((ends[-1] if ends else 0) + int(times[index]))
        self._ends = ends
