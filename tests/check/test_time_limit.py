"""The limit of a run interrupts what does not return, and leaves other alarms as they were."""

from __future__ import annotations

import signal
import threading

import pytest

from batchgen.check.limit import TimeUp, time_limit


def test_what_does_not_return_is_left_even_if_it_catches_exceptions() -> None:
    def stubborn() -> None:
        while True:
            try:
                while True:
                    pass
            except Exception:
                continue

    with pytest.raises(TimeUp), time_limit(0.05):
        stubborn()


def test_an_alarm_of_somebody_else_goes_on() -> None:
    before = signal.getsignal(signal.SIGALRM)
    kept = signal.setitimer(signal.ITIMER_REAL, 250)
    try:
        with time_limit(5):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 5
        assert signal.getsignal(signal.SIGALRM) is before
        assert 200 < signal.getitimer(signal.ITIMER_REAL)[0] <= 250
    finally:
        signal.setitimer(signal.ITIMER_REAL, *kept)


def test_another_thread_is_not_limited() -> None:
    done: list[int] = []

    def work() -> None:
        with time_limit(0.001):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
