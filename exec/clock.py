"""Clocks of the executor: the wall clock, and a stub clock that advances by a cost model.

With the stub clock a run's times are those of the simulator, so their logs can be compared to the
picosecond. Neither clock decides anything.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from batchgen.cost.api import PassLoad
from batchgen.units import PS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchgen.cost.api import CostModel
    from batchgen.step import Chunk


class Clock(Protocol):
    """Time of a run in ps since its start. `simulated`: it says itself how long a copy takes.
    `waited_ps`: of the pass that has just been done, what it waited for copies on the host link."""

    simulated: bool
    waited_ps: int

    def now_ps(self) -> int: ...

    def pass_begins(
        self, contexts: Sequence[int], chunks: Sequence[Chunk], streamed_tokens: int
    ) -> None:
        """A pass begins now."""
        ...

    def pass_done(self) -> int:
        """The pass has been computed: the time at which it ended."""
        ...

    def copy_done(self, tokens: int, to_pool: str) -> int | None:
        """A batch of copies of `tokens` KV tokens in all was asked for now: when it is done, or
        None if that is not for the clock to say."""
        ...

    def from_ns(self, counter_ns: int) -> int:
        """The time of this clock at a reading of `time.perf_counter_ns`, or now."""
        ...

    def wait_until(self, at_ps: int) -> None:
        """Nothing to do before this time."""
        ...

    def at(self, now_ps: int) -> None:
        """An external event of this time is being told (inside a pass, perhaps)."""
        ...


class WallClock:
    """Real time. A copy is done when its copier says so."""

    simulated = False
    waited_ps = 0

    def __init__(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def now_ps(self) -> int:
        return (time.perf_counter_ns() - self._start_ns) * 1000

    def pass_begins(
        self, contexts: Sequence[int], chunks: Sequence[Chunk], streamed_tokens: int
    ) -> None:
        """It takes what it takes."""

    def pass_done(self) -> int:
        return self.now_ps()

    def copy_done(self, tokens: int, to_pool: str) -> None:
        return None

    def from_ns(self, counter_ns: int) -> int:
        return (counter_ns - self._start_ns) * 1000

    def wait_until(self, at_ps: int) -> None:
        time.sleep(max(0, at_ps - self.now_ps()) / PS_PER_S)

    def at(self, now_ps: int) -> None:
        """Real time needs no setting."""


class ModelClock:
    """Simulated time: every pass and copy takes what the cost model says. Each direction of the
    host link serves copies and what passes stream in the order in which they ask: a copy when it is
    ordered, a pass when it begins."""

    simulated = True

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._now_ps = self._end_ps = self.waited_ps = 0
        self._late_ps = 0
        self._begun: deque[tuple[PassLoad, int]] = deque()  # the first runs, others wait behind it
        self._free_ps = {"up": 0, "down": 0}

    def now_ps(self) -> int:
        return self._now_ps

    def pass_begins(
        self, contexts: Sequence[int], chunks: Sequence[Chunk], streamed_tokens: int
    ) -> None:
        """`contexts`: KV tokens each decoding row reads. One pass, computed from scratch."""
        load = PassLoad.zeros(1, 1)
        load.decodes[0, 0] = len(contexts)
        load.context[0, 0] = sum(contexts)
        load.samples[0, 0] = len(contexts) + sum(last for _, _, _, last in chunks)
        for _, start, size, _ in chunks:
            load.chunk_tokens[0, 0] += size
            load.chunk_pairs[0, 0] += (start + size) ** 2 - start**2
            load.chunk_reads[0, 0] += start
        load.checkpoint[0, 0] = streamed_tokens
        self._begun.append((load, streamed_tokens))
        if len(self._begun) == 1:
            self._run()

    def _run(self) -> None:
        """The oldest pass that has begun runs from now on."""
        load, streamed_tokens = self._begun[0]
        end = late = self._now_ps + int(self._cost.pass_ps(load)[0])
        if self._cost.streams or streamed_tokens:
            for way, time in zip(("up", "down"), self._cost.streams_ps(load), strict=True):
                if int(time[0]):
                    late = max(late, self._queue(way, int(time[0])))
        self._end_ps, self._late_ps = late, late - end

    def pass_done(self) -> int:
        self._now_ps, self.waited_ps = self._end_ps, self._late_ps
        self._begun.popleft()
        if self._begun:
            self._run()
        return self._now_ps

    def copy_done(self, tokens: int, to_pool: str) -> int:
        way = "down" if to_pool == "host" else "up"
        return self._queue(way, self._cost.copy_ps(tokens, "host"))

    def _queue(self, way: str, time_ps: int) -> int:
        """When what asks now has passed the link."""
        end = self._free_ps[way] = max(self._now_ps, self._free_ps[way]) + time_ps
        return end

    def from_ns(self, counter_ns: int) -> int:
        return self._now_ps

    def wait_until(self, at_ps: int) -> None:
        self._now_ps = max(self._now_ps, at_ps)

    def at(self, now_ps: int) -> None:
        self._now_ps = now_ps
