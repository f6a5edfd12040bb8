"""Signals while a job runs: the first lets it stop in good order, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 3
FIRST = b"\nstopping after this pass; again stops at once\n"
SECOND = b"\nstopped at once; go on by the same command with --resume always\n"


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Gives the question whether to stop. From the first time it is asked, the first signal makes
    it true and the second ends the process; until then (a model is loaded) a signal is what it was.

    Answers are in the journal within a fifth of a second: a process that ends at once loses none
    that were committed. A signal that is ignored (nohup) stays so.
    """
    before: dict[int, Any] = {}
    is_stopping = is_asked = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            _tell(SECOND)
            os._exit(INTERRUPTED)
        is_stopping = True
        _tell(FIRST)

    def stopping() -> bool:
        nonlocal is_asked
        if not is_asked:
            is_asked = True
            if threading.current_thread() is threading.main_thread():
                for number in SIGNALS:
                    current = signal.getsignal(number)
                    if current is not signal.SIG_IGN:
                        before[number] = current
                        signal.signal(number, handler)
        return is_stopping

    try:
        yield stopping
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def _tell(text: bytes) -> None:
    """A handler may come in the middle of a print: not through Python's buffers."""
    with suppress(OSError):
        os.write(2, text)
