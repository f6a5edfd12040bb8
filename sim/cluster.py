"""The simulated cluster: SimPy callbacks for steps, copies, arrivals and faults around one runtime.

One callback per engine and event, plain timeouts, no Store or Resource. At equal time external
events come before step ends, and step ends go by engine number: SimPy priorities carry that order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import simpy
from simpy.events import Event as SimpyEvent

from batchgen import actions as act
from batchgen import events as ev
from batchgen.sim.flight import NORMAL_SPEED, Flight, Mirror
from batchgen.sim.recorder import Recorder
from batchgen.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.actions import Action
    from batchgen.cost.api import CostModel
    from batchgen.plan import Plan
    from batchgen.runtime.core import Runtime
    from batchgen.sequence import Table
    from batchgen.sim.faults import Fault

# SimPy priorities: external events first, then step ends by engine.
FAULT, ARRIVAL, TIMER, COPY, LAYOUT, STEP = range(6)
PROGRESS_EVERY = 2048


class Observer(Protocol):
    """Sees every event with the actions that answered it (the decision log)."""

    def __call__(self, event: ev.Event, now: int, actions: list[Action]) -> None: ...


class _Device:
    """One engine's mirror, its flight and its links."""

    __slots__ = (
        "cost",
        "flight",
        "generation",
        "life",
        "link_free_ps",
        "mirror",
        "speed",
        "start_ps",
    )

    def __init__(self, mirror: Mirror, cost: CostModel) -> None:
        self.mirror = mirror
        self.cost = cost
        self.flight: Flight | None = None
        self.start_ps = 0
        self.generation = 0
        self.life = 0  # copies of an earlier life never end
        self.speed = NORMAL_SPEED
        self.link_free_ps = 0


class Simulation:
    """Runs one runtime to the end of its rows. `true_output` [rows] is known to the backend only.

    reasons: finish reasons of rows whose reason is known (validation); else "stop" below the budget
    and "length" at it.
    """

    def __init__(
        self,
        runtime: Runtime,
        table: Table,
        plan: Plan,
        cost: CostModel,
        true_output: NDArray[Any],
        *,
        reasons: dict[int, str] | None = None,
        partition_cost: Callable[[str], CostModel] | None = None,
        observer: Observer | None = None,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.runtime = runtime
        self.table = table
        self.plan = plan
        self.cost = cost
        self.env = simpy.Environment(initial_time=0)
        lengths = memoryview(true_output)  # type: ignore[arg-type]
        self.true_output = lengths
        self.devices = [
            _Device(Mirror(table, spec.num_ranks, lengths), cost) for spec in plan.engines
        ]
        self.recorder = Recorder(len(table))
        self.observer = observer
        self.progress = progress
        self.partition_cost = partition_cost
        self.events = 0
        self.passes = 0
        self.last_ps = 0  # time of the latest event
        self._rows_done = 0
        self._reasons = reasons or {}
        self._landing = -1  # the engine whose step end is being told

    # -- scheduling -------------------------------------------------------------------------------

    def _at(self, delay_ps: int, priority: int, call: Callable[[SimpyEvent], None]) -> None:
        event = SimpyEvent(self.env)
        event._ok = True
        event._value = None
        assert event.callbacks is not None
        event.callbacks.append(call)
        self.env.schedule(event, priority, delay_ps)  # type: ignore[arg-type]

    def arrive(self, rows: list[int], at_ps: int) -> None:
        """Rows arrive together at a time."""
        self._at(at_ps, ARRIVAL, lambda _: self._tell(ev.Arrived(rows)))

    def close_input(self, at_ps: int) -> None:
        """Nothing arrives after this time."""
        self._at(at_ps, ARRIVAL, lambda _: self._tell(ev.InputClosed()))

    def inject(self, event: ev.Event, at_ps: int) -> None:
        """Any other external event (cancellation, a row failure, a smaller pool, ...)."""
        self._at(at_ps, TIMER, lambda _: self._tell(event))

    def add_fault(self, fault: Fault, gpus_per_engine: int) -> None:
        """Device trouble at its time; it acts at the next pass boundary, or at once for a loss."""
        engine = fault.gpu // gpus_per_engine
        self._at(fault.at_ps, FAULT, lambda _: self._fault(fault, engine))

    def run(self) -> None:
        """Until no event is left. Rows that nobody can serve any more fail by name."""
        self.env.run()
        table = self.table
        if self.runtime.unfinished:
            for row in list(self.runtime.cluster.homeless):
                # Not the clock's time: timers of steps that were cut may have run on.
                self._tell_at(ev.RowFailed(row, "no_device"), self.last_ps)
            self.env.run()
        if self.runtime.unfinished:
            stuck = [row for row in range(len(table)) if table.v_status[row] < 3][:3]
            raise AssertionError("; ".join(table.story(row) for row in stuck))
        if self.progress is not None:
            self.progress(self.last_ps, self._rows_done, len(table))

    # -- events in, actions out -------------------------------------------------------------------

    def _tell(self, event: ev.Event) -> None:
        now: int = self.env.now  # type: ignore[assignment]
        self._tell_at(event, now)

    def _tell_at(self, event: ev.Event, now: int) -> None:
        self.last_ps = now
        actions = self.runtime.on(event, now)
        self.events += 1
        if self.observer is not None:
            self.observer(event, now, actions)
        for action in actions:
            kind = type(action)
            if kind is Step:
                self._launch(action, now)  # type: ignore[arg-type]
            elif kind is act.Finished:
                self._rows_done += 1
                self._finished(action, now)  # type: ignore[arg-type]
            elif kind is act.Copy:
                self._copy(action, now)  # type: ignore[arg-type]
            elif kind is act.Cut:
                self._cut(action.engine, now)  # type: ignore[union-attr]
            elif kind is act.Failed:
                self._rows_done += 1
                self._failed(action, now)  # type: ignore[arg-type]
            elif kind is act.Switch:
                self._switch(action, now)  # type: ignore[arg-type]
            elif kind is act.Wake:
                self._wake(action, now)  # type: ignore[arg-type]
        if self.progress is not None and self.events % PROGRESS_EVERY == 0:
            self.progress(now, self._rows_done, len(self.table))

    def _wake(self, action: act.Wake, now: int) -> None:
        timer = ev.Timer(action.timer_id)
        self._at(max(0, action.at_ps - now), TIMER, lambda _: self._tell(timer))

    def _finished(self, action: act.Finished, now: int) -> None:
        self.recorder.reasons[action.row] = action.reason
        if self.recorder.v_end[action.row] < 0:  # its body ended it, not its last token
            self._stopped(action.row, now)

    def _failed(self, action: act.Failed, now: int) -> None:
        self.recorder.reasons[action.row] = action.code
        self._stopped(action.row, now)

    def _stopped(self, row: int, now: int) -> None:
        self.recorder.v_end[row] = now
        for device in self.devices:
            if row in device.mirror.finish_q:
                device.mirror.remove(row)

    # -- steps ------------------------------------------------------------------------------------

    def _launch(self, step: Step, now: int) -> None:
        device = self.devices[step.engine]
        device.flight = Flight(step, device.mirror, device.cost, device.speed)
        device.start_ps = now
        self._arm(step.engine, device)

    def _arm(self, engine: int, device: _Device) -> None:
        device.generation += 1
        generation = device.generation
        flight = device.flight
        assert flight is not None
        delay = device.start_ps + flight.duration_ps - self.env.now

        def end(_: SimpyEvent) -> None:
            if device.generation == generation:
                self._land(engine, device)

        self._at(delay, STEP + engine, end)  # type: ignore[arg-type]

    def _land(self, engine: int, device: _Device) -> None:
        flight = device.flight
        assert flight is not None
        step, table = flight.step, self.table
        device.flight = None
        self._landing = engine
        self.passes += flight.passes
        self.recorder.step(flight, device.start_ps, self.runtime.cluster.engines[engine])
        flight.settle()
        gone = {row for row, _ in flight.finishes[: flight.chunk_finishes]}
        for row, _, _, last in step.chunks if flight.passes else ():
            if last and row not in gone:
                # Its token is implied: the mirror counts it before the runtime hears of it.
                produced = table.v_produced[row]
                table.v_produced[row] = produced + 1
                device.mirror.add(row, step.q0 + 1)
                table.v_produced[row] = produced
        finished = sorted((row, offset, self._reason(row)) for row, offset in flight.finishes)
        self._tell(
            ev.StepDone(
                engine,
                step.epoch,
                step.q0,
                flight.passes,
                finished,
                flight.duration_ps,
                flight.ended_by,
            )
        )
        self._landing = -1

    def _reason(self, row: int) -> str:
        given = self._reasons.get(row)
        if given is not None:
            return given
        return "length" if self.true_output[row] >= self.table.v_budget[row] else "stop"

    def _cut(self, engine: int, now: int) -> None:
        device = self.devices[engine]
        flight = device.flight
        if flight is None or flight.passes < 2:
            return
        # At equal time step ends go by engine number: when a later engine's end asks for the cut,
        # a boundary of this engine at the same time is behind us.
        if flight.shorten(now - device.start_ps, after=engine < self._landing):
            self._arm(engine, device)

    # -- copies -----------------------------------------------------------------------------------

    def _copy(self, action: act.Copy, now: int) -> None:
        """Each rank has its own link; a batch ends with its slowest rank; batches queue per
        engine."""
        device = self.devices[action.engine]
        per_rank: dict[int, int] = {}
        for row, tokens in zip(action.rows, action.tokens, strict=True):
            rank = self.table.v_rank[row]
            per_rank[rank] = per_rank.get(rank, 0) + tokens
        link = "host" if action.engine == action.to_engine else "inter"
        duration = max(self.cost.copy_ps(tokens, link) for tokens in per_rank.values())  # type: ignore[arg-type]
        start = max(now, device.link_free_ps)
        device.link_free_ps = start + duration
        copy_id, life = action.copy_id, device.life
        outlives = action.purpose == "migrate"  # hosts outlive devices

        def done(_: SimpyEvent) -> None:
            if outlives or device.life == life:
                self._tell(ev.CopiesDone(copy_id))

        self._at(start + duration - now, COPY, done)
        if outlives:
            text = f"{len(action.rows)} rows to engine {action.to_engine}"
            self.recorder.mark(now, action.engine, "copy", text)

    # -- layouts ----------------------------------------------------------------------------------

    def _switch(self, action: act.Switch, now: int) -> None:
        device = self.devices[action.engine]
        assert self.partition_cost is not None
        device.cost = self.partition_cost(action.layout)
        self.recorder.mark(
            now, action.engine, "switch", f"{action.layout} for {len(action.rows)} rows"
        )
        self._at(
            self.cost.switch_ps(),
            LAYOUT,
            lambda _: self._tell(ev.LayoutReady(action.engine, action.epoch)),
        )

    # -- faults -----------------------------------------------------------------------------------

    def _fault(self, fault: Fault, engine: int) -> None:
        device = self.devices[engine]
        now: int = self.env.now  # type: ignore[assignment]
        core = self.runtime.cluster.engines[engine]
        text = {"slow": f"slow x{fault.speed / 1000:g}"}.get(fault.kind, fault.kind)
        if fault.kind == "slow" and fault.speed == NORMAL_SPEED:
            text = "back to speed"
        self.recorder.mark(now, engine, "fault", f"{text} (gpu {fault.gpu})")
        if fault.kind == "slow":
            device.speed = fault.speed
            self._cut(engine, now)  # the pass in flight ends at its old speed
        elif fault.kind == "notice":
            self._tell(ev.DeviceNotice(engine, fault.deadline_ps))
        elif fault.kind == "lost" and core.alive:
            if device.flight is not None:
                device.flight.fail(now - device.start_ps)
                self._land(engine, device)
            device.generation += 1
            device.life += 1
            device.mirror.clear()
            device.link_free_ps = 0
            device.cost = self.cost
            self._tell(ev.DeviceLost(engine))
        elif fault.kind == "back" and (core.draining or not core.alive):
            self._tell(ev.DeviceBack(engine))
