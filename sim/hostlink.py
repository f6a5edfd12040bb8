"""The links of one engine's GPUs: copies queue there, and with them what passes stream from the
host and to it. It schedules nothing.

Each direction of the host link serves in the order in which it is asked: a copy asks when it is
ordered, a pass when it begins. A copy so waits for the stream of the pass in flight, and the next
pass for the copy; a pass takes longer only where its stream ends after all else in it. Nothing is
moved at more than the rate of the link. Copies to other engines are a queue of their own, at the
rate of the host link where they come from a host of the same node.

Copies over the host link are ordered by decisions of their engine, when no step of it is launched:
only with lag is there a pass in flight then, the last of the step that has just been reported.
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

    __slots__ = ("busy_ps", "free_ps")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing is on its way."""
        self.free_ps = [0, 0, 0]
        self.busy_ps = 0

    def copy(self, lane: int, duration_ps: int, now: int) -> int:
        """When a copy that is ordered now ends."""
        free = self.free_ps
        end = free[lane] = max(now, free[lane]) + duration_ps
        if lane != PEER and end > self.busy_ps:
            self.busy_ps = end
        return end

    def last_pass(self, flight: Flight) -> None:
        """The last pass of the launched step begins, and asks before whatever comes now; earlier
        ones are over, and their streams with them."""
        begin = flight.begin_ps + flight.elapsed(flight.passes - 1)
        for lane, time in enumerate(flight.times.stream_ps(flight.passes - 1)):
            if time:
                self.free_ps[lane] = max(self.free_ps[lane], begin) + time
