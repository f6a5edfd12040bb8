"""Lanes whose order is planned for all their rows at once, or follows the prefix index. They know
no plan of their own: a part arranges the rows, the index says what it knows.

Rows that come while a plan is under way wait behind it, and are arranged with the rest once they
are as many as it has left, so that arranging costs little per row whatever comes when.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from itertools import accumulate

from batchgen.policy.arrangement import Arrangement, Unit
from batchgen.sequence import Status

WAITING = int(Status.WAITING)
FRONT, REAR = 0, 1

Arrange = Callable[[list[int], list[int]], Arrangement]
"""(rows that wait, in the order of their coming; awaited rows that have ended) -> their order."""


class Deck:
    """Waiting rows in a planned order, dealt from the front or, where the part says so, the rear.

    awaited: rows whose end brings the next plan. units: what the plan says of rows.
    """

    __slots__ = (
        "_arrange",
        "_begin",
        "_end",
        "_fresh",
        "_front",
        "_order",
        "_status",
        "_sums",
        "awaited",
        "ended",
        "side",
        "units",
        "whole",
        "works",
    )

    def __init__(self, status: array[int], arrange: Arrange) -> None:
        self._status, self._arrange = status, arrange
        self._front: deque[int] = deque()  # rows that lost their pages
        self._order: list[int] = []
        self._begin = self._end = 0  # what the plan has left
        self._fresh: list[int] = []  # rows that the plan does not know
        self.awaited: set[int] = set()
        self.ended: list[int] = []  # rows that were awaited
        self.side = FRONT
        self.units: dict[int, Unit] = {}
        self.whole = Unit(1.0, 1.0, 1.0)
        self.works: dict[int, tuple[int, int]] = {}
        self._sums: tuple[list[int], list[int]] = ([0], [0])

    def work(self) -> tuple[int, int]:
        """(tokens to compute, KV tokens to read) of all rows that it knows and that wait, by the
        plan; rows of it that have ended meanwhile count until they come to an end of it."""
        if not self.works:
            return 0, 0
        computes, reads = self._sums
        compute = computes[self._end] - computes[self._begin]
        read = reads[self._end] - reads[self._begin]
        for row in self._front:
            if row in self.works and self._status[row] == WAITING:
                mine = self.works[row]
                compute, read = compute + mine[0], read + mine[1]
        return compute, read

    def push(self, row: int) -> None:
        self._fresh.append(row)

    def push_front(self, row: int) -> None:
        self._front.appendleft(row)

    def arrange(self, *, always: bool = False) -> list[int]:
        """Plan anew, if enough rows have come; returns the rows whose end should bring a plan."""
        if not always and (not self._fresh or len(self._fresh) < self._end - self._begin):
            return []
        status = self._status
        rows = self._order[self._begin : self._end] + self._fresh
        rows = [row for row in rows if status[row] == WAITING]
        self._fresh = []
        found = self._arrange(rows, self.ended)
        self._order, self._begin, self._end = found.order, 0, len(found.order)
        self.units, self.whole = found.units, found.whole
        self.works = works = found.works
        if works:
            computes = list(accumulate([works[row][0] for row in found.order], initial=0))
            self._sums = (
                computes,
                list(accumulate([works[row][1] for row in found.order], initial=0)),
            )
        return found.order[: found.awaited]

    def has_ended(self, row: int, *, well: bool) -> bool:
        """An awaited row has ended; True when none is left and the rest should be planned anew."""
        if row not in self.awaited:
            return False
        self.awaited.discard(row)
        if well:
            self.ended.append(row)
        return not self.awaited

    def _skip(self) -> bool:
        """Forget rows that have ended at both ends; False when the plan has no row left."""
        order, status = self._order, self._status
        begin, end = self._begin, self._end
        while begin < end and status[order[begin]] != WAITING:
            begin += 1
        while begin < end and status[order[end - 1]] != WAITING:
            end -= 1
        self._begin, self._end = begin, end
        return begin < end

    def ends(self) -> tuple[int, int]:
        """The rows at both ends of the plan; (-1, -1): it has none left."""
        if not self._skip():
            return -1, -1
        return self._order[self._begin], self._order[self._end - 1]

    @property
    def has_returned(self) -> bool:
        """Whether a row that lost its pages is next; as of the last `peek`."""
        return bool(self._front)

    def peek(self) -> int:
        front, status = self._front, self._status
        while front:
            if status[front[0]] == WAITING:
                return front[0]
            front.popleft()
        if not self._skip():
            if not self._fresh:
                return -1
            self.arrange(always=True)
            if not self._skip():
                return -1
        return self._order[self._begin if self.side == FRONT else self._end - 1]

    def pop(self) -> None:
        if self._front:
            self._front.popleft()
        elif self.side == FRONT:
            self._begin += 1
        else:
            self._end -= 1

    def take_back(self) -> int:
        status = self._status
        while self._fresh:
            row = self._fresh.pop()
            if status[row] == WAITING:
                return row
        if self._skip():
            self._end -= 1
            return self._order[self._end]
        while self._front:
            row = self._front.pop()
            if status[row] == WAITING:
                return row
        return -1

    def drain(self) -> list[int]:
        rows = self.rows()
        self._front.clear()
        self._order, self._fresh = [], []
        self._begin = self._end = 0
        return rows

    def rows(self) -> list[int]:
        """All rows, those of the plan from front to rear."""
        status = self._status
        some = [*self._front, *self._order[self._begin : self._end], *self._fresh]
        return [row for row in some if status[row] == WAITING]


class MatchLane:
    """The row with the most pages in the prefix index first, while at most `most` wait; first in,
    first out otherwise and among equals. Rows pushed to the front come before."""

    __slots__ = ("_front", "_hits", "_most", "_peeked", "_rows", "_status")

    def __init__(self, status: array[int], most: int, hits: Callable[[int], int]) -> None:
        self._status, self._most, self._hits = status, most, hits
        self._front: deque[int] = deque()
        self._rows: dict[int, None] = {}
        self._peeked = -1

    def push(self, row: int) -> None:
        self._rows.pop(row, None)  # it was here before, and its entry is dead
        self._rows[row] = None

    def push_front(self, row: int) -> None:
        self._rows.pop(row, None)
        self._front.appendleft(row)

    def peek(self) -> int:
        front, rows, status = self._front, self._rows, self._status
        while front:
            if status[front[0]] == WAITING:
                return front[0]
            front.popleft()
        while rows:
            first = next(iter(rows))
            if status[first] == WAITING:
                break
            del rows[first]
        if not rows:
            return -1
        best = next(iter(rows))
        if 1 < len(rows) <= self._most:
            hits, most = self._hits, -1
            for row in [row for row in rows if status[row] == WAITING]:
                found = hits(row)
                if found > most:
                    best, most = row, found
        self._peeked = best
        return best

    def pop(self) -> None:
        if self._front:
            self._front.popleft()
        else:
            del self._rows[self._peeked]

    def take_back(self) -> int:
        status = self._status
        while self._rows:
            row, _ = self._rows.popitem()
            if status[row] == WAITING:
                return row
        while self._front:
            row = self._front.pop()
            if status[row] == WAITING:
                return row
        return -1

    def drain(self) -> list[int]:
        rows = self.rows()
        self._front.clear()
        self._rows.clear()
        return rows

    def rows(self) -> list[int]:
        return [row for row in (*self._front, *self._rows) if self._status[row] == WAITING]
