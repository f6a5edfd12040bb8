"""Copies of KV pages between device and host on queues of their own: tickets, as `exec.copier` has.

The host waits for nothing here unless it is asked to. A copy begins when the passes that were
launched before it are over, and a pass that needs what it brings waits for it on the device.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import IntArray
from batchgen.exec.copier import CopyDone
from batchgen.exec.gpu.streams import Queues

POLL_S = 100e-6


def runs(theirs: IntArray, ours: IntArray) -> list[tuple[int, int, int]]:
    """(first page in the source, first in the target, pages) of stretches that follow each other in
    both: each is one copy."""
    if not len(ours):
        return []
    breaks = np.flatnonzero((np.diff(theirs) != 1) | (np.diff(ours) != 1)) + 1
    begins = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((begins, [len(ours)])))
    return list(zip(theirs[begins].tolist(), ours[begins].tolist(), counts.tolist(), strict=True))


class QueuedCopier:
    """The interface of `exec.copier.Copier`. `moved_bytes` counts what was asked for, by (source,
    target) arena names."""

    def __init__(self, queues: Queues) -> None:
        self.moved_bytes: dict[tuple[str, str], int] = {}
        self.asked = 0
        self._queues = queues
        self._open: deque[tuple[int, Any]] = deque()  # tickets that may not be over, with marks
        self._marks: dict[int, Any] = {}
        self._done: list[CopyDone] = []
        self._errors: dict[int, str] = {}

    def copy(self, source: KvArena, target: KvArena, pages: list[tuple[IntArray, IntArray]]) -> int:
        """Copy pages (numbers in the source, numbers in the target); returns the ticket."""
        none = np.zeros(0, dtype=np.int64)
        theirs = np.concatenate([none, *(part[0] for part in pages)])
        ours = np.concatenate([none, *(part[1] for part in pages)])
        self.asked += 1
        ticket, queues = self.asked, self._queues
        queue = queues.down if target.name == "host" else queues.up
        queue.after(queues.compute.mark())
        spans = runs(theirs, ours)

        def move() -> None:
            try:
                for first, into, count in spans:
                    part = source.storage[first : first + count]
                    target.storage[into : into + count].copy_(part, non_blocking=True)
            except (RuntimeError, MemoryError) as problem:
                self._errors[ticket] = f"{problem!s:.200}" or type(problem).__name__

        queue.put(move)
        mark = queue.mark()
        self._open.append((ticket, mark))
        self._marks[ticket] = mark
        tiers = source.name, target.name
        moved = len(ours) * target.page_bytes
        self.moved_bytes[tiers] = self.moved_bytes.get(tiers, 0) + moved
        return ticket

    def _look(self) -> None:
        """Note what is over, in the order of the tickets."""
        while self._open and self._open[0][1].passed():
            ticket, _ = self._open.popleft()
            del self._marks[ticket]
            error = self._errors.get(ticket, "")
            self._done.append(CopyDone(ticket=ticket, at_ns=time.perf_counter_ns(), error=error))

    def require(self, ticket: int) -> None:
        """Passes that are launched from now on wait for a copy, on the device."""
        if ticket in self._marks:
            self._queues.compute.after(self._marks[ticket])

    def settle(self, ticket: int) -> None:
        """Whatever is launched from now on, on any queue, comes after a copy: its pages are free
        for others."""
        if ticket in self._marks:
            mark, queues = self._marks[ticket], self._queues
            for queue in (queues.compute, queues.down, queues.up):
                queue.after(mark)

    def wait(self, ticket: int) -> None:
        """Until the ticket and all before it are over; the host waits."""
        while self._open and self._open[0][0] <= ticket:
            self._open[0][1].wait()
            self._look()

    def over(self, ticket: int) -> bool:
        """Whether the ticket and all before it are over."""
        self._look()
        return not self._open or ticket < self._open[0][0]

    def wait_some(self, timeout_s: float | None) -> None:
        """Until `finished` has something to tell, or the time is over."""
        end = None if timeout_s is None else time.perf_counter() + timeout_s
        if self._queues.late and self._open and not self._done:
            self._open[0][1].wait()
        self._look()
        while self._open and not self._done and (end is None or time.perf_counter() < end):
            time.sleep(POLL_S)
            self._look()

    def error(self, ticket: int) -> str:
        """What went wrong with a ticket that is over; "" if nothing."""
        return self._errors.get(ticket, "")

    def finished(self) -> list[CopyDone]:
        """The tickets that came to their end since the last call, in order."""
        self._look()
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Wait for what was asked for, and forget what is to be told."""
        self.wait(self.asked)
        self._done = []
