"""Clocks of the executor: the wall clock, and a stub clock that advances by a cost model.

With the stub clock a run's times are those of the simulator, so their logs can be compared to the
picosecond. Neither clock decides anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from batchgen.cost.api import PassLoad
from batchgen.units import PS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchgen.cost.api import CostModel
    from batchgen.step import Chunk


class Clock(Protocol):
    """Time of a run in ps since its start. `simulated`: it says itself how long a copy takes."""

    simulated: bool

    def now_ps(self) -> int: ...

    def pass_done(
        self, contexts: Sequence[int], chunks: Sequence[Chunk], streamed_tokens: int
    ) -> int:
        """A pass has been computed: the time at which it ended."""
        ...

    def copy_done(self, tokens: int) -> int | None:
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

    def __init__(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def now_ps(self) -> int:
        return (time.perf_counter_ns() - self._start_ns) * 1000

    def pass_done(
        self, contexts: Sequence[int], chunks: Sequence[Chunk], streamed_tokens: int
    ) -> int:
        return self.now_ps()

    def copy_done(self, tokens: int) -> None:
        return None

    def from_ns(self, counter_ns: int) -> int:
        return (counter_ns - self._start_ns) * 1000

    def wait_until(self, at_ps: int) -> None:
        time.sleep(max(0, at_ps - self.now_ps()) / PS_PER_S)

    def at(self, now_ps: int) -> None:
        """Real time needs no setting."""


class ModelClock:
    """Simulated time: every pass and copy takes what the cost model says, links are first in first
    out."""

    simulated = True

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._now_ps = 0
        self._link_free_ps = 0

    def now_ps(self) -> int:
        return self._now_ps

    def pass_done(
        self, contexts: Sequence[int], chunks: Sequence[Chunk], streamed_tokens: int
    ) -> int:
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
        self._now_ps += int(self._cost.pass_ps(load)[0])
        return self._now_ps

    def copy_done(self, tokens: int) -> int:
        begin = max(self._now_ps, self._link_free_ps)
        self._link_free_ps = begin + self._cost.copy_ps(tokens, "host")
        return self._link_free_ps

    def from_ns(self, counter_ns: int) -> int:
        return self._now_ps

    def wait_until(self, at_ps: int) -> None:
        self._now_ps = max(self._now_ps, at_ps)

    def at(self, now_ps: int) -> None:
        self._now_ps = now_ps
