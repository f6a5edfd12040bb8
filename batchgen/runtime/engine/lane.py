"""Lanes: persistent queues of waiting rows. A lane knows an order; it does not decide who is
admitted.

A row that ends while it waits dies lazily: its status is no longer WAITING when it surfaces.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable

from batchgen.sequence import Status

WAITING = int(Status.WAITING)


class FifoLane:
    """First in, first out; recomputed rows come back in front, others take from the back."""

    __slots__ = ("_rows", "_status")

    def __init__(self, status: array[int]) -> None:
        self._rows: deque[int] = deque()
        self._status = status

    def push(self, row: int) -> None:
        """Add a row behind all others."""
        self._rows.append(row)

    def push_front(self, row: int) -> None:
        """Add a row that must come next (it lost its place through no fault of its own)."""
        self._rows.appendleft(row)

    def peek(self) -> int:
        """The next row, or -1."""
        rows, status = self._rows, self._status
        while rows:
            row = rows[0]
            if status[row] == WAITING:
                return row
            rows.popleft()
        return -1

    def pop(self) -> None:
        """Remove what `peek` returned."""
        self._rows.popleft()

    def take_back(self) -> int:
        """Remove the last row (for another engine); -1 when there is none."""
        rows, status = self._rows, self._status
        while rows:
            row = rows.pop()
            if status[row] == WAITING:
                return row
        return -1

    def drain(self) -> list[int]:
        """Remove everything; returns the rows in order."""
        rows = self.rows()
        self._rows.clear()
        return rows

    def rows(self) -> list[int]:
        """The rows in order (a copy, for drains and checks)."""
        return [row for row in self._rows if self._status[row] == WAITING]


class KeyedLane:
    """Smallest key first, ties by entry; a second heap, made when first needed, is for the back.

    Rows pushed to the front come before every key, newest first.
    """

    __slots__ = ("_back", "_front", "_heap", "_key", "_live", "_seq", "_status")

    def __init__(self, status: array[int], key: Callable[[int], int]) -> None:
        self._status = status
        self._key = key
        self._front: deque[int] = deque()
        self._heap: list[tuple[int, int, int]] = []
        self._back: list[tuple[int, int, int]] | None = None
        self._live: dict[int, int] = {}  # row -> its entry; older entries are dead
        self._seq = 0

    def push(self, row: int) -> None:
        self._seq += 1
        key = self._key(row)
        self._live[row] = self._seq
        heapq.heappush(self._heap, (key, self._seq, row))
        if self._back is not None:
            heapq.heappush(self._back, (-key, -self._seq, row))

    def push_front(self, row: int) -> None:
        self._front.appendleft(row)

    def _alive(self, row: int, seq: int) -> bool:
        return self._live.get(row) == seq and self._status[row] == WAITING

    def peek(self) -> int:
        front, heap = self._front, self._heap
        while front:
            if self._status[front[0]] == WAITING:
                return front[0]
            front.popleft()
        while heap:
            _, seq, row = heap[0]
            if self._alive(row, seq):
                return row
            heapq.heappop(heap)
        return -1

    def pop(self) -> None:
        if self._front:
            self._front.popleft()
        else:
            del self._live[heapq.heappop(self._heap)[2]]

    def take_back(self) -> int:
        if self._back is None:
            self._back = [(-key, -seq, row) for key, seq, row in self._heap]
            heapq.heapify(self._back)
        while self._back:
            _, seq, row = heapq.heappop(self._back)
            if self._alive(row, -seq):
                del self._live[row]
                return row
        while self._front:
            row = self._front.pop()
            if self._status[row] == WAITING:
                return row
        return -1

    def drain(self) -> list[int]:
        rows = self.rows()
        self._front.clear()
        self._heap.clear()
        self._back = None
        self._live.clear()
        return rows

    def rows(self) -> list[int]:
        front = [row for row in self._front if self._status[row] == WAITING]
        keyed = [row for _, seq, row in sorted(self._heap) if self._alive(row, seq)]
        return front + keyed


Lane = FifoLane | KeyedLane
