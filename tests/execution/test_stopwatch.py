"""Stopwatches: of the CPU by its clock, of a GPU by events, here of a device made of numbers."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.exec.stopwatch import CudaStopwatch, Stopwatch, stopwatch_of

times_us = st.integers(1, 5000)


class Device:
    """A stream: work begins when it is asked for and all before it is done. Microseconds."""

    def __init__(self) -> None:
        self.host_us = self.done_us = 0.0
        self.pauses_us: list[float] = []

    def ask(self, host_us: float, device_us: float) -> None:
        """A call that takes the host so long, for work that takes the device so long."""
        self.host_us += host_us
        self.done_us = max(self.done_us, self.host_us) + device_us

    def _sleep(self, cycles: int) -> None:
        self.pauses_us.append(1e6 * cycles / CudaStopwatch.PAUSE_CYCLES_PER_S)
        self.ask(0, self.pauses_us[-1])

    def Event(self, *, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at_us=-1.0)

        def record() -> None:
            self.ask(0, 0)
            event.at_us = self.done_us

        def elapsed_time(end: SimpleNamespace) -> float:
            assert 0 <= event.at_us <= end.at_us <= self.host_us, "an event that is not over"
            return (end.at_us - event.at_us) / 1e3

        def synchronize() -> None:
            self.host_us = max(self.host_us, event.at_us)

        event.record, event.elapsed_time, event.synchronize = record, elapsed_time, synchronize
        return event


@given(
    calls=st.lists(st.tuples(times_us, times_us), min_size=1, max_size=20),
    between_us=times_us,
)
def test_what_a_gpu_takes_is_its_own_time_whatever_the_host_does(
    calls: list[tuple[int, int]], between_us: int
) -> None:
    """Behind a pause as long as the host needs, laps are the sums of their work."""
    device = Device()
    watch = CudaStopwatch(device)

    def once() -> None:
        for host_us, device_us in calls:
            device.ask(0, between_us)
            watch.lap(lambda h=host_us, d=device_us: device.ask(h, d))

    host_s = 1e-6 * sum(host_us for host_us, _ in calls)
    watch.get_ahead(host_s)
    once()
    enough = 1e6 * host_s <= device.pauses_us[0]
    expected = 1e-6 * sum(device_us for _, device_us in calls)
    assert enough == (host_s <= CudaStopwatch.MOST_AHEAD_S)
    taken_s = watch.taken_s()
    assert taken_s == pytest.approx(expected) if enough else taken_s >= expected * (1 - 1e-9)
    assert watch.taken_s() == 0.0


def test_a_pause_is_long_enough_at_the_highest_clock() -> None:
    cycles: list[int] = []
    CudaStopwatch(SimpleNamespace(_sleep=cycles.append)).get_ahead(0.03)
    assert cycles[0] / 2.617e9 >= 0.03  # an RTX PRO 6000; a GeForce RTX 4090 goes up to 2.52 GHz


def test_a_gpu_is_measured_by_the_median_after_a_warm_up() -> None:
    device, calls = Device(), []
    watch = CudaStopwatch(device)

    def run() -> None:
        calls.append(0)
        device.ask(1, 1000 if len(calls) <= watch.warm_ups else (5, 7, 90)[len(calls) % 3])

    assert watch.timed(run, 0.0) == pytest.approx(7e-6)
    assert len(calls) == watch.warm_ups + 3


def test_the_processor_is_measured_by_its_clock() -> None:
    watch = stopwatch_of("cpu")
    assert type(watch) is Stopwatch
    begin = time.perf_counter()
    seconds = watch.timed(lambda: time.sleep(0.002), 0.01)
    assert 0.002 <= seconds < time.perf_counter() - begin
    assert watch.typical([4, 1, 3, 2]) == 2
