"""Queues of work on a device, and marks in them. CUDA's own, or ones that work late on the CPU.

Work that is given to a queue runs in order, after the host has gone on. What the host hands over
(pinned memory, pages, slots) must therefore stay as it is until a mark behind its use has been
passed. `LateQueues` makes that testable without a GPU: it runs nothing before somebody waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch

Work = Callable[[], object]


class Mark(Protocol):
    """A place in a queue."""

    def passed(self) -> bool:
        """Whether all work before it is done."""
        ...

    def wait(self) -> None:
        """Until it is; the host waits."""
        ...


class Queue(Protocol):
    """One stream of work."""

    def put(self, work: Work) -> None:
        """Do this after what was put before."""
        ...

    def now(self, work: Callable[[], Any]) -> Any:
        """Make something on the host that may launch work of its own here; returns what it made."""
        ...

    def mark(self) -> Any:
        """A mark behind all that was put so far."""
        ...

    def after(self, mark: Any) -> None:
        """What is put from now on waits for a mark of another queue; the host does not."""
        ...


class CudaMark:
    """A CUDA event."""

    def __init__(self, stream: Any) -> None:
        self.event = torch.cuda.Event()
        self.event.record(stream)

    def passed(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


class CudaQueue:
    """A CUDA stream; work is launched at once and runs when the stream comes to it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def put(self, work: Work) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def now(self, work: Callable[[], Any]) -> Any:
        with torch.cuda.stream(self.stream):
            return work()

    def mark(self) -> CudaMark:
        return CudaMark(self.stream)

    def after(self, mark: CudaMark) -> None:
        self.stream.wait_event(mark.event)


class LateMark:
    """A mark of a late queue."""

    def __init__(self, queue: LateQueue, place: int) -> None:
        self._queue, self._place = queue, place

    def passed(self) -> bool:
        return self._queue.done >= self._place

    def wait(self) -> None:
        self._queue.run_to(self._place)


class LateQueue:
    """Runs nothing until a mark behind it is waited for."""

    def __init__(self) -> None:
        self.done = 0
        self._put = 0
        self._waiting: deque[Work] = deque()

    def put(self, work: Work) -> None:
        self._waiting.append(work)
        self._put += 1

    def now(self, work: Callable[[], Any]) -> Any:
        return work()

    def mark(self) -> LateMark:
        return LateMark(self, self._put)

    def after(self, mark: LateMark) -> None:
        self.put(mark.wait)

    def run_to(self, place: int) -> None:
        """Everything up to a place. Work that fails is over; who waits for it is told."""
        while self.done < place:
            work = self._waiting.popleft()
            self.done += 1
            work()


class Queues:
    """The queues of one device: passes, copies to the host, copies from it, read-back of tokens."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        names = ("compute", "down", "up", "read")
        if device.type == "cuda":
            # Not the default stream, which waits for all others.
            made: list[Any] = [CudaQueue(torch.cuda.Stream(device)) for _ in names]
        else:
            made = [LateQueue() for _ in names]
        self.compute, self.down, self.up, self.read = made

    @property
    def late(self) -> bool:
        """Whether these are the CPU's, for tests."""
        return self.device.type != "cuda"

    def idle(self) -> None:
        """Until all queues are empty."""
        for queue in (self.compute, self.down, self.up, self.read):
            queue.mark().wait()
