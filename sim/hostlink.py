"""The links of one engine's GPUs: copies queue there, and with them what passes stream from the
host and to it. It schedules nothing.

Each direction of the host link serves in the order in which it is asked: a copy asks when it is
ordered, a pass when it begins. A copy so waits for the stream of the pass in flight, and the next
pass for the copy; a pass takes longer only where its stream ends after all else in it. Nothing is
moved at more than the rate of the link. Links to other engines are a queue of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.sim.flight import Flight

UP, DOWN, PEER = 0, 1, 2
"""From the host, to the host, to another engine."""


class HostLink:
    """free_ps: until when each direction is busy with what has asked; busy_ps: until when copies
    keep the host link busy. The ranks of an engine copy at the same time, each over its own link;
    the longest counts."""

    __slots__ = ("_booked", "busy_ps", "free_ps")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing is on its way."""
        self.free_ps = [0, 0, 0]
        self.busy_ps = 0
        self._booked = -1  # newest pass whose stream counts in free_ps

    def copy(self, lane: int, duration_ps: int, now: int, flight: Flight, *, after: bool) -> int:
        """When a copy that is ordered now ends. Passes that have not begun wait for it. after: a
        pass that begins at this very time has begun."""
        follows = lane != PEER and flight.uses_link
        begun = flight.num_begun(now, after) if follows else 0
        if begun:
            self.book(flight, begun - 1)
        free = self.free_ps
        end = free[lane] = max(now, free[lane]) + duration_ps
        if lane != PEER:
            self.busy_ps = max(self.busy_ps, end)
        if follows:
            flight.wait(begun, free)
        return end

    def book(self, flight: Flight, index: int) -> None:
        """A pass of the launched step has begun, and asked before whatever comes now. Earlier ones
        are over, and their streams with them."""
        step = flight.step
        assert step is not None
        if step.q0 + index <= self._booked:
            return
        self._booked = step.q0 + index
        begin = flight.begin_ps + flight.elapsed(index)
        for lane, time in enumerate(flight.times.stream_ps(index)):
            if time:
                self.free_ps[lane] = max(self.free_ps[lane], begin) + time
