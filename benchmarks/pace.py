"""What the machine can do while a simulation runs: SimPy's own rate of events, measured in turns.

Machines differ, and one machine differs from minute to minute. So a simulation is run in slices, a
bare SimPy loop is timed between any two of them, and the seconds of every slice are also told as
seconds of a machine that does `RATE` events a second.
"""

from __future__ import annotations

import gc
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import simpy
from simpy.core import EmptySchedule
from simpy.events import Event

if TYPE_CHECKING:
    from batchgen.sim.cluster import Simulation

RATE = 1_100_000
"""SimPy events a second of the machine that targets are stated for."""
LOOP_EVENTS, LOOP_ENGINES = 12_000, 64
SLICE_S = 0.25


def simpy_rate() -> float:
    """Events a second of a loop that does nothing: one callback per event, as the simulator has
    it, 64 of them waiting at any time."""
    env = simpy.Environment(initial_time=0)
    left = LOOP_EVENTS

    def later(delay: int) -> None:
        event = Event(env)
        event._ok = True
        event._value = None
        assert event.callbacks is not None
        event.callbacks.append(again)
        env.schedule(event, 5, delay)  # type: ignore[arg-type]

    def again(_: Event) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            later(1000)

    for delay in range(LOOP_ENGINES):
        later(delay)
    began = time.process_time()
    env.run()
    return LOOP_EVENTS / (time.process_time() - began)


def paced(simulation: Simulation) -> dict[str, Any]:
    """Run it: processor seconds as they were, and as they would be at `RATE`."""
    gc.collect()
    step = simulation.env.step
    cpu_s = scaled_s = 0.0
    rate, rates, events = simpy_rate(), [], 256
    running = True
    while running:
        began = time.process_time()
        try:
            for _ in range(events):
                step()
        except EmptySchedule:
            running = False
        spent = time.process_time() - began
        before, rate = rate, simpy_rate()
        cpu_s += spent
        scaled_s += spent * (before + rate) / 2 / RATE
        rates.append(rate)
        events = max(64, int(events * min(4.0, SLICE_S / max(spent, 1e-3))))
    simulation.run()  # rows that nobody can serve any more would fail here
    rates.sort()
    rows, told = len(simulation.table), simulation.events
    return {
        "rows": rows,
        "ends": sha256(simulation.recorder.end_ps.tobytes()).hexdigest()[:16],
        "events": told,
        "passes": simulation.passes,
        "preemptions": int(simulation.table.preemptions.sum()),
        "suspensions": int(simulation.table.suspensions.sum()),
        "cpu_s": cpu_s,
        "scaled_s": scaled_s,
        "simpy_events_per_s": {"least": rates[0], "median": rates[len(rates) // 2]},
        "us_per_event": scaled_s / told * 1e6,
        "us_per_row": scaled_s / rows * 1e6,
    }
