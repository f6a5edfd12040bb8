"""Copies of KV pages between tiers, beside the passes: tickets, byte counts, one thread.

Copies are done in the order in which they were asked for. Which pages there are and when they may
be read or freed is the worker's business; it waits for a ticket before it frees a page.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import IntArray
from batchgen.exec.page_moves import move_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyDone:
    """A ticket that is over: when (perf_counter_ns), and what went wrong ("" if nothing)."""

    ticket: int
    at_ns: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    ticket: int
    tiers: tuple[str, str]
    source: torch.Tensor
    theirs: IntArray
    target: torch.Tensor
    ours: IntArray
    ready: torch.cuda.Event | None  # what the GPU was asked for before; a copy sees all of it


class Copier:
    """Use `close` (or let the process end): the thread is a daemon and begins with the first copy.

    `moved_bytes` counts what was copied up to now, by (source, target) arena names.
    """

    def __init__(self) -> None:
        self.moved_bytes: dict[tuple[str, str], int] = {}
        self._jobs: deque[_Job] = deque()
        self._done: deque[CopyDone] = deque()
        self._errors: dict[int, str] = {}
        self.asked = self._finished = 0

        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    # -- asking -----------------------------------------------------------------------------------

    def copy(self, source: KvArena, target: KvArena, pages: list[tuple[IntArray, IntArray]]) -> int:
        """Copy pages (numbers in the source, numbers in the target); returns the ticket."""
        none = np.zeros(0, dtype=np.int64)
        theirs = np.concatenate([none, *(part[0] for part in pages)])
        ours = np.concatenate([none, *(part[1] for part in pages)])
        ready = None
        if "cuda" in (source.device.type, target.device.type):
            ready = torch.cuda.Event()
            ready.record()
        with self._change:
            self.asked += 1
            self._jobs.append(
                _Job(
                    ticket=self.asked,
                    tiers=(source.name, target.name),
                    source=source.storage,
                    theirs=theirs,
                    target=target.storage,
                    ours=ours,
                    ready=ready,
                )
            )
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
                self._thread.start()
            self._change.notify_all()
            return self.asked

    def wait(self, ticket: int) -> None:
        """Until the ticket and all before it are over."""
        if ticket <= self._finished:
            return
        with self._change:
            self._change.wait_for(lambda: self._finished >= ticket)

    def over(self, ticket: int) -> bool:
        """Whether the ticket and all before it are over."""
        return ticket <= self._finished

    def wait_some(self, timeout_s: float | None) -> None:
        """Until `finished` has something to tell, or the time is over."""
        with self._change:
            self._change.wait_for(lambda: bool(self._done), timeout_s)

    def error(self, ticket: int) -> str:
        """What went wrong with a ticket that is over; "" if nothing."""
        return self._errors.get(ticket, "")

    def finished(self) -> list[CopyDone]:
        """The tickets that came to their end since the last call, in order."""
        if not self._done:
            return []
        with self._change:
            done = list(self._done)
            self._done.clear()
        return done

    def close(self) -> None:
        """End the thread, when what was asked for is done, and forget what is to be told."""
        if self._thread is not None:
            with self._change:
                self._closing = True
                self._change.notify_all()
            self._thread.join()
            self._thread, self._closing = None, False
        self._done.clear()  # nobody is left who has asked

    # -- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        stream = None  # of a GPU: its own, so that copies and passes run beside each other
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._jobs) or self._closing)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            error = ""
            try:
                if job.ready is not None:
                    stream = stream or torch.cuda.Stream()
                    stream.wait_event(job.ready)
                with torch.cuda.stream(stream):  # nothing for None
                    move_pages(job.source, job.theirs, job.target, job.ours)
            except Exception as problem:  # whatever it is: who waits for the ticket must be told
                error = f"{problem!s:.200}" or type(problem).__name__
            with self._change:
                if error:  # known before the ticket is over: others look without the lock
                    self._errors[job.ticket] = error
                else:
                    moved = len(job.ours) * job.target[:1].nbytes
                    self.moved_bytes[job.tiers] = self.moved_bytes.get(job.tiers, 0) + moved
                self._finished = job.ticket
                at_ns = time.perf_counter_ns()
                self._done.append(CopyDone(ticket=job.ticket, at_ns=at_ns, error=error))
                self._change.notify_all()
