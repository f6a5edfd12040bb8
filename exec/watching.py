"""Looks at a run now and then and says how it stands; a small part of its time at most."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from batchgen.exec.driver import Driver
from batchgen.job.forecast import Forecast
from batchgen.job.load import load_of, places_of
from batchgen.job.pace import Pace, left_s
from batchgen.job.snapshot import Snapshot

EVERY_S = 0.25
LEAST_REST = 250
"""A look, with all that is done with it, is followed by a rest of so many times its own length, and
so is an estimate of what is left: together they take less than 1 % of a run, however many rows it
has and however slow the terminal is."""
WINDOW_S = 10.0


class Watcher:
    """`counts` gives rows of the input that are (done, failed) by now; `tell` takes snapshots.

    Two looks are `every_s` apart at least, and more where one takes long.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        rows: int,
        earlier: int,
        counts: Callable[[], tuple[int, int]],
        tell: Callable[[Snapshot], None],
        forecast: Forecast | None = None,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.driver = driver
        self._rows, self._earlier = rows, earlier
        self._counts, self._tell = counts, tell
        self._forecast = forecast
        self._every_s, self._clock = every_s, clock
        self._next_s = clock() + every_s
        self._pace = Pace()
        self._told_passes = 0
        self._input = self._output = 0
        self._left: tuple[float, float, float] | None = None  # when it was said, least, most
        self._next_left_s = 0.0
        self._recent: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])
        self.spent_s = 0.0

    def now_and_then(self, now_ps: int) -> None:
        """Looks if it is time; `now_ps` is the time of the run."""
        began = self._clock()
        if began < self._next_s:
            return
        self._estimate(now_ps / 1e12)
        middle = self._clock()
        self._tell(self.look(now_ps))
        ended = self._clock()
        self.spent_s += ended - began
        self._next_s = began + max(self._every_s, LEAST_REST * (ended - middle))

    def look(self, now_ps: int) -> Snapshot:
        """How the run stands."""
        driver, elapsed_s = self.driver, now_ps / 1e12
        self._read_passes()
        places = places_of(driver.table)
        recent = self._recent
        recent.append((elapsed_s, self._input, self._output))
        while len(recent) > 2 and elapsed_s - recent[1][0] >= WINDOW_S:
            recent.popleft()
        since_s, inputs, outputs = recent[0]
        span_s = max(elapsed_s - since_s, 1e-9)
        done, failed = self._counts()
        forecast = self._forecast
        return Snapshot(
            rows=self._rows,
            done=done,
            failed=failed,
            earlier=self._earlier,
            elapsed_s=elapsed_s,
            running=places.running,
            waiting=places.waiting,
            input_tokens=self._input,
            output_tokens=self._output,
            input_tokens_per_s=(self._input - inputs) / span_s,
            output_tokens_per_s=(self._output - outputs) / span_s,
            kv_pages=driver.runtime.kv_pages(0),
            kv_pages_total=driver.runtime.plan.engines[0].hbm_pages,
            phase=places.phase,
            left_s=self._left_s(elapsed_s) if places.running or places.waiting else (0.0, 0.0),
            expected=None if forecast is None else forecast.at(now_ps, self._output),
        )

    def _estimate(self, elapsed_s: float) -> None:
        """What is left, anew if it is time."""
        began = self._clock()
        if began >= self._next_left_s:
            driver = self.driver
            self._read_passes()
            found = left_s(load_of(driver.table, driver.runtime.decode_clock(0)), self._pace)
            self._left = None if found is None else (elapsed_s, *found)
            self._next_left_s = began + LEAST_REST * (self._clock() - began)

    def _left_s(self, elapsed_s: float) -> tuple[float, float] | None:
        """What was estimated, less the time since."""
        if self._left is None:
            return None
        then_s, least, most = self._left
        since_s = elapsed_s - then_s
        return max(least - since_s, 0.0), max(most - since_s, 0.0)

    def _read_passes(self) -> None:
        """What the passes since the last look have computed."""
        passes, begin = self.driver.record.passes, self._told_passes
        self._told_passes = len(passes["samples"])
        chunks = passes["chunk_tokens"][begin:]
        self._input += sum(chunks)
        self._output += sum(passes["samples"][begin:])
        spent = zip(passes["duration_ps"][begin:], passes["gap_ps"][begin:], strict=True)
        self._pace.tell(passes["decodes"][begin:], chunks, [(a + b) / 1e12 for a, b in spent])
