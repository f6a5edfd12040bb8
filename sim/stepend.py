"""The one event that an engine schedules in SimPy again and again. (A file of its own: a class that
inherits from SimPy's cannot be compiled.)"""

from __future__ import annotations

from simpy.events import Event


class StepEnd(Event):  # type: ignore[misc]
    """The report of an engine's step, or the end of its last pass. An engine uses the same event
    again and again; a cut or a loss leaves it behind in SimPy's queue, void, and takes a new one.
    """

    __slots__ = ("number", "queued")
