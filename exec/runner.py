"""Passes as tickets: `launch(pass) -> ticket`, `collect(ticket) -> result`.

With depth 1 a pass runs when it is collected; with depth 2 it runs in a thread of its own, so that
the next step is decided meanwhile. What changes rows or pages while a pass runs is done when it is
over, in order: a device works in the order of its stream.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.errors import IllegalTransition

if TYPE_CHECKING:
    from batchgen.exec.batch import PassResult
    from batchgen.exec.worker import Worker
    from batchgen.step import Pass


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A launched pass. `future` None: it runs when it is collected."""

    one: Pass
    future: Future[PassResult] | None


class Runner:
    """One worker. `depth` 1 or 2. Use as a context manager, so that its threads end.

    `ahead`: a pass may be launched while another is in flight; not here.
    """

    ahead = False

    def __init__(self, worker: Worker, depth: int) -> None:
        self._worker = worker
        self._pool = ThreadPoolExecutor(1, "pass") if depth > 1 else None
        self._flying: Ticket | None = None
        self._later: list[Callable[[], object]] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._worker.copier.close()

    def launch(self, one: Pass) -> Ticket:
        """The pass runs from now on; one at a time."""
        if self._flying is not None:
            raise IllegalTransition("a pass was launched while another runs")
        future = None
        if self._pool is not None:
            future = self._pool.submit(self._worker.run_pass, one.decodes, one.chunks)
        self._flying = Ticket(one, future)
        return self._flying

    def collect(self, ticket: Ticket) -> PassResult:
        """The result of the launched pass; what was to be done after it is done then."""
        if ticket is not self._flying:
            raise IllegalTransition("a pass was collected that does not run")
        if ticket.future is not None:
            result = ticket.future.result()
        else:
            result = self._worker.run_pass(ticket.one.decodes, ticket.one.chunks)
        self._flying = None
        later, self._later = self._later, []
        for act in later:
            act()
        return result

    def do(self, act: Callable[[], object]) -> None:
        """Change rows or pages of the worker: now, or when the pass in flight is over."""
        if self._flying is None or self._flying.future is None:
            act()
        else:
            self._later.append(act)
