"""The rows that decode on one engine: how many per rank, what they read, who ends when.

k is the decode clock: a row that joins before decode pass k with so many tokens missing ends in a
pass that is known then. A heap has the ends; what is dead in it is dropped when it comes up. It
knows no step and no time.
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
    each row, where a cost asks for rows; finishes: ends that were taken off the heap."""

    __slots__ = (
        "book",
        "counts",
        "engine",
        "finishes",
        "heap",
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
        self.heap: list[int] = []  # (finish + 1) << 32 | row
        self.finishes: list[tuple[int, int]] = []  # (finish, row)

    def base(self) -> tuple[int, int, int]:
        """(rows that decode, the sum of their offsets, decode clock) before the launched step."""
        if self.num_ranks == 1:
            return self.counts[0], self.offsets[0], self.k
        return sum(self.counts), sum(self.offsets), self.k

    def add(self, row: int, produced: int, k: int, *, counted: bool = True) -> None:
        """The row decodes from decode pass k on; it has produced so many tokens."""
        book = self.book
        finish = k + book.total[row] - produced - 1
        book.finish[row] = finish
        book.device[row] = self.engine
        heappush(self.heap, (finish + 1) << 32 | row)
        if counted:
            book.offset[row] = offset = book.table.v_prompt[row] + produced - 1 - k
            rank = 0
            if self.num_ranks > 1:
                book.rank[row] = rank = book.table.v_rank[row]
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
        if not (self.lag and NEVER < book.finish[row] < self.k):
            book.finish[row] = NEVER

    def uncount(self, row: int) -> None:
        """The row is in no pass any more."""
        book = self.book
        rank = book.rank[row] if self.num_ranks > 1 else 0
        self.counts[rank] -= 1
        self.offsets[rank] -= book.offset[row]
        book.counted[row] = 0
        if self.members is not None:
            del self.members[row]

    def clear(self) -> list[int]:
        """The device is lost: its rows, which are returned, are in no running set."""
        book = self.book
        rows = [entry & LOW for entry in self.heap] + [row for _, row in self.finishes]
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

    def next_finish(self) -> int:
        """The decode pass of the earliest end, dropping dead entries of the heap."""
        heap, finish, device, me = self.heap, self.book.finish, self.book.device, self.engine
        while heap:
            entry = heap[0]
            row = entry & LOW
            if finish[row] == (entry >> 32) - 1 and device[row] == me:
                return finish[row]
            heappop(heap)
        return FAR

    def pop_until(self, last: int) -> list[tuple[int, int]]:
        """(finish, row) of every end up to decode pass `last`, in order, taken off the heap."""
        heap, finish, device, me = self.heap, self.book.finish, self.book.device, self.engine
        found: list[tuple[int, int]] = []
        top = (last + 2) << 32
        while heap and heap[0] < top:
            entry = heappop(heap)
            row, at = entry & LOW, (entry >> 32) - 1
            if finish[row] == at and device[row] == me and not (found and found[-1] == (at, row)):
                found.append((at, row))
        return found
