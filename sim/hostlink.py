"""The links of one engine's GPUs: copies queue there, and with them what passes stream from the
host and to it. It schedules nothing.

Each direction of the host link serves in the order in which it is asked: a copy asks when it is
ordered, a pass when it begins. A copy so waits for the stream of the pass in flight, and the next
pass for the copy; a pass takes longer only where its stream ends after all else in it. Nothing is
moved at more than the rate of the link.

A copy to another engine has a link at either end, and begins when both are free: what goes out of
the source and what comes in at the target, over links that passes do not use; the way from the host
to the target for what a host of its node holds; the way to the host at the source and from it at
the target where GPUs of a node have no link of their own. The last two meet streams of passes: then
passes of a launched step that have not begun wait for the copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.sim.flight import Flight

UP, DOWN, OUT, IN = 0, 1, 2, 3
"""From the host, to the host, to another engine, from another engine."""


class HostLink:
    """free_ps: until when each direction is busy with what has asked; busy_ps: until when copies
    keep the host link busy; asked_q: the last pass whose stream has asked before a copy did. The
    ranks of an engine copy at the same time, each over its own link; the longest counts."""

    __slots__ = ("asked_q", "busy_ps", "free_ps")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing is on its way."""
        self.free_ps = [0, 0, 0, 0]
        self.busy_ps = 0
        self.asked_q = -1

    def pass_asks(self, flight: Flight, index: int) -> None:
        """A pass of the launched step has begun, and asks before whatever comes now; earlier ones
        are over, and their streams with them."""
        assert flight.step is not None
        number = flight.step.q0 + index
        if self.asked_q == number:
            return
        self.asked_q = number
        begin = flight.begin_ps + flight.elapsed(index)
        for lane, time in enumerate(flight.times.stream_ps(index)):
            if time:
                self.free_ps[lane] = max(self.free_ps[lane], begin) + time


def copy_over(ways: list[tuple[HostLink, int]], duration_ps: int, now: int) -> int:
    """When a copy that is ordered now over all these links ends."""
    begin = now
    for link, lane in ways:
        if link.free_ps[lane] > begin:
            begin = link.free_ps[lane]
    end = begin + duration_ps
    for link, lane in ways:
        link.free_ps[lane] = end
        if lane < OUT and end > link.busy_ps:
            link.busy_ps = end
    return end
