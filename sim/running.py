"""The rows that decode on one engine: how many per rank, what they read, who ends when.

k is the decode clock: a row that joins before decode pass k with so many tokens missing ends in a
pass that is known then. A heap has the ends; what is dead in it is dropped when it comes up. Once
ranks have paused, each falls behind the clock by passes of its own and has its own heap. It knows
no step and no time.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from batchgen.sim.passtimes import FAR
from batchgen.sim.rowbook import LOW, NEVER

if TYPE_CHECKING:
    from batchgen.sim.rowbook import RowBook


class RunningSet:
    """counts, offsets: rows per rank, and the sum of their (tokens read - k); members: the rank of
    each row, where a cost asks for rows; finishes: ends that were taken off the heap; behind:
    passes that each rank has paused, by which its rows are counted from k (see `RowBook`); heaps:
    one per rank instead of `heap`, empty before the first pause."""

    __slots__ = (
        "behind",
        "book",
        "counts",
        "engine",
        "finishes",
        "heap",
        "heaps",
        "k",
        "lag",
        "members",
        "num_ranks",
        "offsets",
    )

    def __init__(self, engine: int, book: RowBook, lag: int) -> None:
        self.engine, self.book, self.lag = engine, book, lag
        self.k = 0
        self.empty(1, detailed=False)

    def empty(self, num_ranks: int, *, detailed: bool) -> None:
        """No row runs, on so many ranks."""
        self.num_ranks = num_ranks
        self.counts = [0] * num_ranks
        self.offsets = [0] * num_ranks
        self.members: dict[int, int] | None = {} if detailed else None
        self.behind = [0] * num_ranks
        self.heap: list[int] = []  # (finish + 1) << 32 | row
        self.heaps: list[list[int]] = []
        self.finishes: list[tuple[int, int]] = []  # (finish, row)

    def add(self, row: int, produced: int, k: int, *, counted: bool = True) -> None:
        """The row decodes from decode pass k on; it has produced so many tokens."""
        book, rank = self.book, 0
        if self.num_ranks > 1:
            book.rank[row] = rank = book.table.v_rank[row]
        behind = self.behind[rank]
        finish = k - behind + book.total[row] - produced - 1
        book.finish[row] = finish
        book.device[row] = self.engine
        heappush(self.heaps[rank] if self.heaps else self.heap, (finish + 1) << 32 | row)
        if counted:
            offset = book.table.v_prompt[row] + produced - 1 - k
            book.offset[row] = offset + behind
            self.counts[rank] += 1
            self.offsets[rank] += offset
            book.counted[row] = 1
            if self.members is not None:
                self.members[row] = rank

    def remove(self, row: int) -> None:
        """The row decodes no more. One that ended in the pass in flight is still to be reported."""
        book = self.book
        if not book.counted[row] or book.device[row] != self.engine:
            return
        self.uncount(row)
        if not (self.lag and NEVER < book.finish[row] < self.k - self._behind(row)):
            book.finish[row] = NEVER

    def uncount(self, row: int) -> None:
        """The row is in no pass any more."""
        book = self.book
        rank = book.rank[row] if self.num_ranks > 1 else 0
        self.counts[rank] -= 1
        self.offsets[rank] -= book.offset[row] - self.behind[rank]
        book.counted[row] = 0
        if self.members is not None:
            del self.members[row]

    def clear(self) -> list[int]:
        """The device is lost: its rows, which are returned, are in no running set."""
        book = self.book
        rows = [entry & LOW for entry in self.entries()] + [row for _, row in self.finishes]
        rows = [row for row in rows if book.device[row] == self.engine]
        for row in rows:
            self.forget(row, book)
        return rows

    def forget(self, row: int, book: RowBook) -> None:
        """The row is lost with this engine, unless another has it by now."""
        if book.device[row] == self.engine:
            book.device[row] = -1
            book.counted[row] = 0
            book.finish[row] = NEVER

    # -- ranks that pause -------------------------------------------------------------------------

    def _behind(self, row: int) -> int:
        """Passes by which the row's rank is behind the clock."""
        return self.behind[self.book.rank[row]] if self.heaps else 0

    def entries(self) -> list[int]:
        """All ends, also dead ones, in no order."""
        return [entry for heap in self.heaps for entry in heap] if self.heaps else self.heap

    def part(self) -> None:
        """From now on ranks pause: each has a clock and a heap of its own."""
        heaps: list[list[int]] = [[] for _ in range(self.num_ranks)]
        finish, device, rank_of = self.book.finish, self.book.device, self.book.rank
        for entry in sorted(self.heap):
            row = entry & LOW
            if finish[row] == (entry >> 32) - 1 and device[row] == self.engine:
                heaps[rank_of[row]].append(entry)
        self.heap, self.heaps = [], heaps

    def fall_behind(self, ranks: list[int], passes: int) -> None:
        """The clock goes on by so many passes in which these ranks pause."""
        for rank in ranks:
            self.behind[rank] += passes
            self.offsets[rank] -= self.counts[rank] * passes

    def next_finish_of_all(self, paused: list[int]) -> int:
        """`next_finish` of heaps by rank. Rows of ranks that pause end in no pass from k on."""
        earliest = FAR
        for rank, heap in enumerate(self.heaps):
            at = self._first(heap, rank)
            if at < FAR:
                at += self.behind[rank]
                if at < earliest and not (at >= self.k and rank in paused):
                    earliest = at
        return earliest

    def pop_all_until(self, last: int, paused: list[int]) -> list[tuple[int, int]]:
        """`pop_until` of heaps by rank."""
        found: list[tuple[int, int]] = []
        for rank, heap in enumerate(self.heaps):
            if heap:
                behind = self.behind[rank]
                limit = min(last, self.k - 1) if rank in paused else last
                found += [(at + behind, row) for at, row in self._pop(heap, limit - behind, rank)]
        found.sort()
        return found

    # -- ends -------------------------------------------------------------------------------------

    def next_finish(self) -> int:
        """The decode pass of the earliest end, dropping dead entries of the heap."""
        return self._first(self.heap, -1)

    def _first(self, heap: list[int], rank: int) -> int:
        """Of one heap; rank: whose it is, -1: everybody's."""
        rank_of = self.book.rank
        finish, device, me = self.book.finish, self.book.device, self.engine
        while heap:
            entry = heap[0]
            row = entry & LOW
            here = device[row] == me and (rank < 0 or rank_of[row] == rank)
            if here and finish[row] == (entry >> 32) - 1:
                return finish[row]
            heappop(heap)
        return FAR

    def pop_until(self, last: int) -> list[tuple[int, int]]:
        """(finish, row) of every end up to decode pass `last`, in order, taken off the heap."""
        return self._pop(self.heap, last, -1)

    def _pop(self, heap: list[int], last: int, rank: int) -> list[tuple[int, int]]:
        rank_of = self.book.rank
        finish, device, me = self.book.finish, self.book.device, self.engine
        found: list[tuple[int, int]] = []
        top = (last + 2) << 32
        while heap and heap[0] < top:
            entry = heappop(heap)
            row, at = entry & LOW, (entry >> 32) - 1
            here = device[row] == me and (rank < 0 or rank_of[row] == rank)
            if here and finish[row] == at and not (found and found[-1] == (at, row)):
                found.append((at, row))
        return found
