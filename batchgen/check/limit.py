"""A limit to the time of a run: what never returns is left. It judges nothing."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LIMIT_S = 30.0
"""Of one run of a small case; an honest one takes less than one second."""
AGAIN_S = 1.0
_monotonic = time.monotonic  # a run has another clock (`batchgen.check.clock`)


class TimeUp(BaseException):
    """The time of a run is up. No Exception: a part may catch those."""


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Raise TimeUp in what runs after so long, and again while it goes on. Only the main thread can
    be interrupted, and only where there is SIGALRM: elsewhere nothing is limited."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "setitimer"):
        yield
        return

    over = False

    def up(number: int, frame: FrameType | None) -> None:
        if not over:
            raise TimeUp

    began = _monotonic()
    handler = signal.signal(signal.SIGALRM, up)
    left_s, every_s = signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
    try:
        yield
    finally:
        over = True  # before anything else: one more alarm may come on the way
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left_s:  # somebody else's alarm, as the test runner's
            left_s = max(left_s - (_monotonic() - began), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left_s, every_s)
