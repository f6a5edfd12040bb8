"""Passes as tickets: `launch(pass) -> ticket`, `collect(ticket) -> result`.

With depth 1 a pass runs when it is collected; with depth 2 it runs in a thread of its own, so that
the next step is decided meanwhile. What changes rows or pages while a pass runs is done when it is
over, in order: a device works in the order of its stream.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.exec.worker import PassResult, Worker
    from batchgen.step import Pass


class Runner:
    """One worker. `depth` 1 or 2. Use as a context manager, so that the thread ends."""

    def __init__(self, worker: Worker, depth: int) -> None:
        self._worker = worker
        self._pool = ThreadPoolExecutor(1, "pass") if depth > 1 else None
        self._flying: Future[PassResult] | None = None
        self._waiting: Pass | None = None
        self._later: list[Callable[[], object]] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def launch(self, one: Pass) -> None:
        """The pass runs from now on."""
        if self._pool is None:
            self._waiting = one
        else:
            self._flying = self._pool.submit(self._worker.run_pass, one.decodes, one.chunks)

    def collect(self) -> PassResult:
        """The result of the launched pass; what was to be done after it is done then."""
        if self._flying is not None:
            result = self._flying.result()
            self._flying = None
        else:
            assert self._waiting is not None
            result = self._worker.run_pass(self._waiting.decodes, self._waiting.chunks)
            self._waiting = None
        later, self._later = self._later, []
        for act in later:
            act()
        return result

    def do(self, act: Callable[[], object]) -> None:
        """Change rows or pages of the worker: now, or when the pass in flight is over."""
        if self._flying is None:
            act()
        else:
            self._later.append(act)
