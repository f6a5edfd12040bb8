"""Says when a run stands still, and which rows are in the pass that does not end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

PATIENCE_S = 60.0
TIMES_LONGEST = 20
"""A pass may take so many times as long as the longest that has ended before anybody is told."""
MOST_NAMES = 5


class Watchdog:
    """While it is entered: where `alive` is not called for long, `say` gets a line, once more after
    twice the time, and so on; and one when the run goes on after that. It ends nothing: a device
    that hangs cannot be told from one that is slow.

    `rows` names what is in flight; it is asked in a thread of its own.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        rows: Callable[[], Sequence[str]],
    ) -> None:
        self._say, self._rows = say, rows
        self._since_s = time.monotonic()
        self._longest_s = 0.0
        self._told = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def alive(self) -> None:
        """Something has happened."""
        now = time.monotonic()
        stood_s = now - self._since_s
        self._since_s = now
        if self._told:
            self._told = 0
            self._say(f"the run goes on, after {stood_s:.0f} s")
        self._longest_s = max(self._longest_s, stood_s)

    def __enter__(self) -> Watchdog:
        self._since_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, PATIENCE_S / 4)):
            limit_s = max(PATIENCE_S, TIMES_LONGEST * self._longest_s)
            stood_s = time.monotonic() - self._since_s
            if stood_s >= limit_s * 2**self._told:
                self._told += 1
                self._say(f"nothing has happened for {stood_s:.0f} s; {self._in_flight()}")

    def _in_flight(self) -> str:
        names = list(self._rows())
        if not names:
            return "no row is in a pass"
        shown = ", ".join(repr(name) for name in names[:MOST_NAMES])
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        return f"in the pass that does not end: {shown}{more}"
