"""A step in flight: which passes it runs, when each ends, who finishes where. No events, no policy.

`Mirror` keeps, from the actions alone, what the cost model needs of a running set: rows and summed
offsets per rank, and a heap of finish passes. It is the simulator's own book, apart from the
core's.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Literal

import numpy as np

from batchgen.cost.api import PassLoad
from batchgen.step import ended_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.cost.api import CostModel
    from batchgen.sequence import Table
    from batchgen.step import Step

NORMAL_SPEED = 1000
"""Speed factors are integers in thousandths of the normal pass time, so that times stay exact."""


class Mirror:
    """The running set of one engine as its backend sees it. `true_output` is known here only."""

    __slots__ = (
        "counts",
        "finish_q",
        "heap",
        "num_ranks",
        "offset",
        "offsets",
        "table",
        "true_output",
    )

    def __init__(self, table: Table, num_ranks: int, true_output: memoryview[int]) -> None:
        self.table = table
        self.true_output = true_output
        self.num_ranks = num_ranks
        self.counts = [0] * num_ranks
        self.offsets = [0] * num_ranks
        self.offset: dict[int, int] = {}
        self.finish_q: dict[int, int] = {}
        self.heap: list[tuple[int, int]] = []

    def add(self, row: int, q: int) -> None:
        """The row decodes from pass q on."""
        table = self.table
        rank = table.v_rank[row]
        produced = table.v_produced[row]
        offset = table.v_prompt[row] + produced - 1 - q
        self.offset[row] = offset
        self.counts[rank] += 1
        self.offsets[rank] += offset
        finish = q + self.true_output[row] - produced - 1
        self.finish_q[row] = finish
        heapq.heappush(self.heap, (finish, row))

    def remove(self, row: int) -> None:
        """The row decodes no more."""
        rank = self.table.v_rank[row]
        self.counts[rank] -= 1
        self.offsets[rank] -= self.offset.pop(row)
        del self.finish_q[row]

    def clear(self) -> None:
        """The device is lost."""
        self.counts = [0] * self.num_ranks
        self.offsets = [0] * self.num_ranks
        self.offset.clear()
        self.finish_q.clear()
        self.heap.clear()

    def next_finish(self) -> int | None:
        """The pass of the earliest finish, dropping dead heap entries."""
        heap, finish_q = self.heap, self.finish_q
        while heap:
            finish, row = heap[0]
            if finish_q.get(row) == finish:
                return finish
            heapq.heappop(heap)
        return None

    def pop_until(self, last: int) -> list[tuple[int, int]]:
        """(pass, row) of every finish up to pass `last`, in order, taken off the heap."""
        found: list[tuple[int, int]] = []
        heap, finish_q = self.heap, self.finish_q
        while heap and heap[0][0] <= last:
            entry = heapq.heappop(heap)
            # A row that left and came back in time may be there twice, with the same pass.
            if finish_q.get(entry[1]) == entry[0] and not (found and found[-1] == entry):
                found.append(entry)
        return found


class Flight:
    """One launched step. `ends_ps[i]` belongs to `finishes[i]`; offsets count passes from q0."""

    __slots__ = (
        "_base",
        "chunk_finishes",
        "cost",
        "duration_ps",
        "ends_ps",
        "failed",
        "finishes",
        "mirror",
        "passes",
        "speed",
        "step",
        "streaming",
    )

    def __init__(self, step: Step, mirror: Mirror, cost: CostModel, speed: int) -> None:
        """Plan the step: join and leave, find the finishes, sum the pass times."""
        self.step = step
        self.mirror = mirror
        self.cost = cost
        self.speed = speed
        self.streaming = step.checkpoint == "host"
        for row in step.left:
            if row in mirror.finish_q:
                mirror.remove(row)
        for row in step.joined:
            mirror.add(row, step.q0)
        # What the step starts with; finishes come off the mirror when the step is over.
        self._base = (list(mirror.counts), list(mirror.offsets))
        self.finishes: list[tuple[int, int]] = []  # (row, offset)
        self.ends_ps: list[int] = []
        self.chunk_finishes = 0
        self.passes = step.n
        self.failed = False
        self.duration_ps = 0
        self._find_finishes()
        self._sum_times()

    def base_sums(self) -> tuple[int, int]:
        """(decoding rows, their summed offsets) of the first pass, over all ranks."""
        return sum(self._base[0]), sum(self._base[1])

    # -- who finishes -------------------------------------------------------------------------

    def _find_finishes(self) -> None:
        step, mirror = self.step, self.mirror
        if step.chunks:
            table, true_output = mirror.table, mirror.true_output
            for row, _, _, last in step.chunks:
                if last and table.v_produced[row] + 1 >= true_output[row]:
                    self.finishes.append((row, 0))
                    self.chunk_finishes += 1
        if step.until == "first":
            first = mirror.next_finish()
            if first is not None and first < step.q0 + step.n:
                self.passes = first - step.q0 + 1
                self.finishes.extend((row, q - step.q0) for q, row in mirror.pop_until(first))
        else:
            found = mirror.pop_until(step.q0 + step.n - 1)
            self.finishes.extend((row, q - step.q0) for q, row in found)
            if not step.chunks and len(self.finishes) == sum(mirror.counts):
                self.passes = self.finishes[-1][1] + 1

    # -- how long -----------------------------------------------------------------------------

    def _sum_times(self) -> None:
        simple = self.mirror.num_ranks == 1 and self.speed == NORMAL_SPEED
        if simple and not self.step.chunks:
            self._sum_affine()
        elif simple and self.passes == 1:
            self._sum_one()
        else:
            ends = np.cumsum(self.pass_times())
            self.duration_ps = int(ends[-1]) if len(ends) else 0
            self.ends_ps = [int(ends[offset]) for _, offset in self.finishes]

    def _sum_affine(self) -> None:
        """One rank, decodes only: a closed form between finishes, exact in integers."""
        count, offsets = self._base[0][0], self._base[1][0]
        q0, passes = self.step.q0, self.passes
        elapsed, at = 0, 0
        index, finishes = 0, self.finishes
        while at < passes:
            stop = finishes[index][1] + 1 if index < len(finishes) else passes
            run = min(stop, passes) - at
            if run and count:
                c0, slope = self.cost.decode_affine(count, self.streaming)
                context = offsets + count * (q0 + at + 1)
                elapsed += run * c0 + slope * (run * context + count * (run * (run - 1) // 2))
            at += run
            while index < len(finishes) and finishes[index][1] + 1 == at:
                row = finishes[index][0]
                self.ends_ps.append(elapsed)
                count -= 1
                offsets -= self.mirror.offset[row]
                index += 1
        self.duration_ps = elapsed

    def _sum_one(self) -> None:
        """One rank, one pass with chunks, by scalars."""
        count, offsets = self._base[0][0], self._base[1][0]
        tokens = pairs = reads = 0
        samples = count
        for _, start, size, last in self.step.chunks:
            tokens += size
            pairs += (start + size) ** 2 - start * start
            reads += start
            samples += last
        self.duration_ps = self.cost.pass_one_ps(
            count,
            offsets + count * (self.step.q0 + 1),
            tokens,
            pairs,
            reads,
            samples,
            tokens + count if self.streaming else 0,
        )
        self.ends_ps = [self.duration_ps] * len(self.finishes)

    def load(self) -> PassLoad:
        """The whole step as arrays [ranks, passes]."""
        step, mirror, passes = self.step, self.mirror, self.passes
        load = PassLoad.zeros(mirror.num_ranks, passes)
        ks = np.arange(passes, dtype=np.int64)
        counts = np.array(self._base[0], dtype=np.int64)
        offsets = np.array(self._base[1], dtype=np.int64)
        decodes = np.repeat(counts[:, None], passes, axis=1)
        summed = np.repeat(offsets[:, None], passes, axis=1)
        rank_of = mirror.table.v_rank
        for row, offset in self.finishes[self.chunk_finishes :]:
            if offset + 1 < passes:
                rank = rank_of[row]
                decodes[rank, offset + 1 :] -= 1
                summed[rank, offset + 1 :] -= mirror.offset[row]
        load.decodes[:] = decodes
        load.context[:] = summed + decodes * (step.q0 + ks + 1)
        load.samples[:] = decodes
        for row, start, size, last in step.chunks:
            rank = rank_of[row]
            starts = start + size * ks
            load.chunk_tokens[rank] += size
            load.chunk_pairs[rank] += (starts + size) ** 2 - starts**2
            load.chunk_reads[rank] += starts
            load.samples[rank] += last
        if self.streaming:
            load.checkpoint[:] = load.decodes + load.chunk_tokens
        return load

    def pass_times(self) -> NDArray[np.int64]:
        """Duration of every pass in ps, at this flight's speed."""
        times = self.cost.pass_ps(_grouped(self.load(), self.cost.num_ranks))
        return times if self.speed == NORMAL_SPEED else times * self.speed // NORMAL_SPEED

    # -- ending early ---------------------------------------------------------------------------

    def shorten(self, elapsed_ps: int, *, after: bool = False) -> bool:
        """End at the first pass boundary at or after `elapsed_ps`; True if that is earlier.

        after: a boundary at that very time has passed already.
        """
        ends = np.cumsum(self.pass_times())
        side: Literal["left", "right"] = "right" if after else "left"
        passes = int(np.searchsorted(ends, elapsed_ps, side=side)) + 1
        if passes >= self.passes:
            return False
        self._stop_after(passes, int(ends[passes - 1]))
        return True

    def fail(self, elapsed_ps: int) -> None:
        """The device is lost: only the passes that were complete after `elapsed_ps` count."""
        ends = np.cumsum(self.pass_times())
        passes = int(np.searchsorted(ends, elapsed_ps, side="right"))
        self._stop_after(passes, int(ends[passes - 1]) if passes else 0)
        self.failed = True

    def _stop_after(self, passes: int, duration_ps: int) -> None:
        """Keep the first `passes` passes; later finishes go back to the mirror."""
        self.passes = passes
        self.duration_ps = duration_ps
        kept = [item for item in self.finishes if item[1] < passes]
        for row, offset in self.finishes[max(len(kept), self.chunk_finishes) :]:
            self._push_back(row, offset)
        self.finishes = kept
        self.ends_ps = self.ends_ps[: len(kept)]
        self.chunk_finishes = min(self.chunk_finishes, len(kept))

    def _push_back(self, row: int, offset: int) -> None:
        heapq.heappush(self.mirror.heap, (self.step.q0 + offset, row))

    @property
    def ended_by(self) -> str:
        """Why the step is over after `passes` (see batchgen.step.ended_by)."""
        if self.failed:
            return "failed"
        decoding = self.finishes[self.chunk_finishes :]
        return ended_by(
            self.step,
            self.passes,
            finished=bool(decoding) and decoding[-1][1] == self.passes - 1,
            nothing_left=len(decoding) == sum(self._base[0]),
        )

    def settle(self) -> None:
        """The step is over: take its finished rows off the mirror."""
        for row, _ in self.finishes[self.chunk_finishes :]:
            self.mirror.remove(row)


def _grouped(load: PassLoad, num_ranks: int) -> PassLoad:
    """The load over `num_ranks` groups of neighbouring ranks (a partitioned layout has fewer)."""
    if load.num_ranks == num_ranks:
        return load
    size = load.num_ranks // num_ranks
    return PassLoad(
        *(
            getattr(load, name).reshape(num_ranks, size, load.num_passes).sum(axis=1)
            for name in PassLoad.__dataclass_fields__
        )
    )
