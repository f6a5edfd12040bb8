"""Times what a device does: the CPU by its clock, a GPU by events in its stream.

Both are used alike, so that what is measured knows no device: calls are timed in laps, `taken_s`
gives the seconds of all laps since it was last asked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

LEAST_SAMPLES = 3


class Stopwatch:
    """That of the CPU, where a call that returns is done."""

    device = "cpu"
    warm_ups = 1  # the first call pays for caches and allocations

    def __init__(self) -> None:
        self._spent_s = 0.0

    def lap(self, run: Callable[[], object]) -> None:
        """Run and time it."""
        begin = time.perf_counter()
        run()
        self._spent_s += time.perf_counter() - begin

    def taken_s(self) -> float:
        """Seconds of the laps since the last call, when all they asked for is done."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def get_ahead(self, host_s: float) -> None:
        """Before laps whose calls take the host `host_s`: let it get so far ahead of the device."""

    def wake(self) -> None:
        """Work until the clocks of the device are as under load."""

    def typical(self, samples: Sequence[float]) -> float:
        """The lower quartile: other work on the machine delays calls and never speeds one up."""
        return sorted(samples)[len(samples) // 4]

    def timed(self, run: Callable[[], object], seconds: float) -> float:
        """Typical seconds of `run`: some calls, for about `seconds`."""
        return self.sampled(lambda: self.lap(run), seconds)

    def sampled(self, once: Callable[[], object], seconds: float) -> float:
        """Typical seconds of the laps of `once`: at least three calls, for about `seconds`."""
        host_s = 0.0
        for _ in range(self.warm_ups):
            begin = time.perf_counter()
            once()
            host_s = time.perf_counter() - begin
            self.taken_s()
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while len(samples) < LEAST_SAMPLES or time.perf_counter() < end:
            self.get_ahead(host_s)
            once()
            samples.append(self.taken_s())
        return self.typical(samples)


class CudaStopwatch(Stopwatch):
    """That of a GPU: calls only ask for work, so laps lie between events of the stream.

    A GPU waits for the host between small kernels. What is measured is the GPU's own time: it
    pauses before the laps until the host has asked for all of them. What the host costs is in the
    whole passes of a profile.
    """

    device = "cuda"
    warm_ups = 2
    # Above the clock of any GPU, so that a pause is never too short: data-centre GPUs go up to 2.0
    # GHz, an RTX PRO 6000 to 2.6, and users overclock.
    PAUSE_CYCLES_PER_S = 3.2e9
    SPARE_S, MOST_AHEAD_S = 1e-4, 0.05
    WAKE_S = 0.3

    def __init__(self, cuda: Any = torch.cuda) -> None:
        super().__init__()
        self._cuda = cuda
        self._laps: list[tuple[Any, Any]] = []

    def lap(self, run: Callable[[], object]) -> None:
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        self._laps.append((begin, end))

    def taken_s(self) -> float:
        laps, self._laps = self._laps, []
        if not laps:
            return 0.0
        laps[-1][1].synchronize()
        return sum(begin.elapsed_time(end) for begin, end in laps) / 1e3  # from milliseconds

    def get_ahead(self, host_s: float) -> None:
        pause_s = min(1.25 * host_s + self.SPARE_S, self.MOST_AHEAD_S)
        self._cuda._sleep(int(pause_s * self.PAUSE_CYCLES_PER_S))

    def wake(self) -> None:
        x = torch.ones(4096, 4096, dtype=torch.bfloat16, device=self.device)
        end = time.perf_counter() + self.WAKE_S
        while time.perf_counter() < end:
            x @ x
            self._cuda.synchronize()

    def typical(self, samples: Sequence[float]) -> float:
        """The median: nothing else runs on the GPU, and its clock goes both ways."""
        return statistics.median(samples)


def stopwatch_of(device: str) -> Stopwatch:
    """The one of "cpu" or "cuda"."""
    return CudaStopwatch() if device == "cuda" else Stopwatch()
