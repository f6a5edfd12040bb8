"""Tasks on several processes, one at a time each. It knows no sweep: a task is a number, its result
what `work` makes of it.

Workers are forked, so that they share what the parent has read. They ignore Ctrl-C, which is the
parent's: it gives out nothing more and waits for what runs (`Stop`). A worker that dies (for want
of memory, by a signal) costs the task that it had, and another one takes its place. A worker whose
parent is gone ends after its task.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

Work = Callable[[int], Any]


class Died:
    """What became of the task of a worker that did not survive it."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def __str__(self) -> str:
        if self.code is not None and self.code < 0:
            return f"its process was ended by signal {-self.code} (memory?)"
        return f"its process ended with code {self.code}"


class _Worker:
    def __init__(self, work: Work, others: Sequence[Connection]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        ours = [*others, self.pipe]
        self.process = context.Process(target=_serve, args=(work, theirs, ours), daemon=True)
        self.process.start()
        theirs.close()
        self.task: int | None = None

    def give(self, task: int) -> None:
        self.task = task
        self.pipe.send(task)

    def close(self, *, kill: bool) -> None:
        if kill:
            self.process.kill()
        self.pipe.close()
        self.process.join()


def _serve(work: Work, pipe: Connection, parents: Sequence[Connection]) -> None:
    """The life of a worker. Only the parent keeps its ends of the pipes: all see when it ends."""
    for one in parents:
        one.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    try:
        while True:
            pipe.send(work(pipe.recv()))
    except (EOFError, OSError):
        os._exit(0)


class Stop:
    """Whether a signal has asked to end. Inside, the first one (Ctrl-C, SIGTERM, SIGHUP) only sets
    it, so that nothing is cut in two; the next one is a KeyboardInterrupt."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.asked = False
        self._tell = tell
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.asked

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._tell()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_all(
    work: Work, tasks: Sequence[int], num_workers: int, stop: Stop
) -> Iterator[tuple[int, Any]]:
    """(task, result) as they come; a `Died` for a task whose worker died. Once `stop` is set, what
    runs is waited for and nothing more is begun."""
    left = list(reversed(tasks))
    workers: list[_Worker] = []
    is_whole = False
    try:
        for _ in range(min(num_workers, len(left))):
            workers.append(_Worker(work, [one.pipe for one in workers]))
            workers[-1].give(left.pop())
        while any(one.task is not None for one in workers):
            ready = wait([one.pipe for one in workers if one.task is not None])
            for number, worker in enumerate(workers):
                if worker.pipe not in ready or worker.task is None:
                    continue
                task, worker.task = worker.task, None
                try:
                    result: Any = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.close(kill=False)
                    result = Died(worker.process.exitcode)
                    others = [one.pipe for one in workers if one is not worker]
                    worker = workers[number] = _Worker(work, others)
                if left and not stop:
                    worker.give(left.pop())
                yield task, result
        is_whole = True
    finally:
        for worker in workers:
            worker.close(kill=not is_whole)
