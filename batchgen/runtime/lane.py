"""Lanes: persistent queues of waiting rows. A lane knows an order; it does not decide who is
admitted.

Entries die lazily: a row that was cancelled, stolen or admitted elsewhere stays in the container
and
is skipped when it surfaces, so removal costs nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable


class Lane:
    """Waiting rows of one rank, first in first out, or by key when `key` is given.

    `alive(row)` tells whether an entry still waits here. Rows pushed to the front (recomputed ones)
    come before everything else, newest first, whatever the key says.
    """

    __slots__ = ("_front", "_heap", "_key", "_seq", "_tail", "alive")

    def __init__(
        self, alive: Callable[[int], bool], key: Callable[[int], int] | None = None
    ) -> None:
        self.alive = alive
        self._key = key
        self._front: deque[int] = deque()
        self._tail: deque[int] = deque()
        self._heap: list[tuple[int, int, int]] = []
        self._seq = 0

    def push(self, row: int) -> None:
        """Add a newly arrived row."""
        if self._key is None:
            self._tail.append(row)
        else:
            self._seq += 1
            heapq.heappush(self._heap, (self._key(row), self._seq, row))

    def push_front(self, row: int) -> None:
        """Add a row that must come next (it lost its place through no fault of its own)."""
        self._front.appendleft(row)

    def peek(self) -> int | None:
        """The next row that still waits here, or None. Drops dead entries on the way."""
        alive = self.alive
        front, tail, heap = self._front, self._tail, self._heap
        while front:
            if alive(front[0]):
                return front[0]
            front.popleft()
        while tail:
            if alive(tail[0]):
                return tail[0]
            tail.popleft()
        while heap:
            if alive(heap[0][2]):
                return heap[0][2]
            heapq.heappop(heap)
        return None

    def pop(self) -> None:
        """Remove what `peek` returned."""
        if self._front:
            self._front.popleft()
        elif self._tail:
            self._tail.popleft()
        else:
            heapq.heappop(self._heap)

    def take_last(self, count: int) -> list[int]:
        """Remove up to `count` live rows from the end (for stealing), last first."""
        taken: list[int] = []
        while len(taken) < count:
            if self._tail:
                row = self._tail.pop()
            elif self._heap:
                row = self._heap.pop(max(range(len(self._heap)), key=self._heap.__getitem__))[2]
                heapq.heapify(self._heap)
            elif self._front:
                row = self._front.pop()
            else:
                break
            if self.alive(row) and row not in taken:
                taken.append(row)
        return taken

    def drain(self) -> list[int]:
        """Remove everything; returns the live rows in order."""
        rows = self.rows()
        self._front.clear()
        self._tail.clear()
        self._heap.clear()
        return rows

    def rows(self) -> list[int]:
        """All live rows in order (a copy; for drains and reports)."""
        ordered = [*self._front, *self._tail, *(entry[2] for entry in sorted(self._heap))]
        return list(dict.fromkeys(row for row in ordered if self.alive(row)))
