"""Passes as tickets on a worker with queues: up to two are launched before the first is collected.

What changes rows or pages is done at once, while passes run: the device works in the order in which
things were asked of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.errors import IllegalTransition
from batchgen.exec.batch import PassResult
from batchgen.exec.gpu.flight import Flight

if TYPE_CHECKING:
    from batchgen.exec.gpu.worker import QueuedWorker
    from batchgen.step import Pass


@dataclass(frozen=True, slots=True, eq=False)
class QueuedTicket:
    """A launched pass."""

    one: Pass
    flight: Flight


class QueuedRunner:
    """One worker. With `depth` 2 a pass may be launched behind one that runs."""

    def __init__(self, worker: QueuedWorker, depth: int) -> None:
        self._worker = worker
        self.ahead = depth > 1
        self._flying: deque[QueuedTicket] = deque()

    def __enter__(self) -> QueuedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.finish()

    def launch(self, one: Pass) -> QueuedTicket:
        """The pass runs behind those that were launched before it."""
        if len(self._flying) > self.ahead:
            raise IllegalTransition("a pass was launched while others run")
        ticket = QueuedTicket(one, self._worker.launch_pass(one.decodes, one.chunks))
        self._flying.append(ticket)
        return ticket

    def collect(self, ticket: QueuedTicket) -> PassResult:
        """The result of the oldest launched pass."""
        if not self._flying or self._flying[0] is not ticket:
            raise IllegalTransition("a pass was collected that is not the oldest")
        self._flying.popleft()
        return self._worker.collect_pass(ticket.flight)

    def do(self, act: Callable[[], object]) -> None:
        """Change rows or pages of the worker."""
        act()
