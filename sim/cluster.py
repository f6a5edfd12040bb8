"""The simulated cluster: SimPy callbacks for steps, copies, arrivals and troubles around one
runtime.

One callback per event, plain timeouts, no Store or Resource. At equal time external events come
before step ends, and step ends go by engine number: SimPy priorities carry that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import simpy
from simpy.events import Event as SimpyEvent

from batchgen import actions as act
from batchgen import events as ev
from batchgen.cost.pipeline import PipelineCost
from batchgen.runtime.advisor import HOME
from batchgen.sim.device import Device, copy_ps, make_devices, new_end
from batchgen.sim.hostlink import DOWN, IN, OUT, UP, copy_over
from batchgen.sim.mishaps import strike
from batchgen.sim.passtimes import too_long
from batchgen.sim.recorder import LEFT, LOST, Recorder
from batchgen.sim.rowbook import RowBook
from batchgen.step import Step
from batchgen.units import MOST_PS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.actions import Action
    from batchgen.cost.api import CostModel
    from batchgen.cost.partition import PartitionPlanner
    from batchgen.plan import Plan
    from batchgen.runtime.core import Runtime
    from batchgen.sequence import Table
    from batchgen.sim.faults import Fault

PROGRESS_EVERY = 256
QUIET = frozenset({act.Place, act.Release, act.Adopt, act.Publish, act.Evict})
"""Placing, releasing and shared pages change nothing here."""


class Observer(Protocol):
    """Sees every event with the actions that answered it (the decision log)."""

    def __call__(self, event: ev.Event, now: int, actions: list[Action]) -> None: ...


class Simulation:
    """Runs one runtime to the end of its rows. `true_output` [rows] is known to the backend only.

    reasons: finish reasons by (row, stage) that are known (validation); else "stop" below the
    budget and "length" at it. stages: true output of a row's further stage, counted from 1.
    skewed: costs under an expert skew in thousandths; the policy keeps those it has.
    """

    def __init__(
        self,
        runtime: Runtime,
        table: Table,
        plan: Plan,
        cost: CostModel,
        true_output: NDArray[Any],
        *,
        reasons: Mapping[tuple[int, int], str] | None = None,
        stages: Callable[[int, int], int] | None = None,
        layout_cost: Callable[[str], CostModel] | None = None,
        skewed: Callable[[int], PartitionPlanner] | None = None,
        observer: Observer | None = None,
        progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.runtime = runtime
        self.table = table
        self.plan = plan
        self.cost = cost
        self.lag = plan.lag
        self.env = simpy.Environment(initial_time=0)
        self.book = RowBook(table, true_output)
        self._on_step_end = [self._step_end]  # SimPy reads the list of callbacks, never changes it
        self.batches = cost.num_stages if isinstance(cost, PipelineCost) else 1
        self.devices, self.pipelines = make_devices(plan, self.book, cost, self.env)
        self.recorder = Recorder(len(table))
        self._on, self._ended = runtime.on, self.recorder.ended
        self.observer = observer
        self.progress = progress
        self.layout_cost = layout_cost
        self.skewed = skewed
        self.events = 0
        self.passes = 0
        self.last_ps = 0  # time of the latest event
        self._rows_done = 0
        self._reasons = reasons or {}
        self._stages = stages
        self._landing = -1  # the engine whose step end is being told

    # -- scheduling -------------------------------------------------------------------------------

    def _at(self, delay_ps: int, priority: int, call: Callable[[SimpyEvent], None]) -> None:
        event = SimpyEvent(self.env)
        event._ok = True
        event._value = None
        assert event.callbacks is not None
        event.callbacks.append(call)
        self.env.schedule(event, priority, delay_ps)  # type: ignore[arg-type]

    def follow(self, priority: int, calls: Iterator[tuple[int, Callable[[], None]]]) -> None:
        """Calls at their times, which never fall. Only the next one is scheduled: the queue of
        events stays as short as what goes on at once, however long the run."""
        following = next(calls, None)
        if following is None:
            return
        at_ps, call = following

        def due(_: SimpyEvent) -> None:
            self.follow(priority, calls)
            call()

        now: int = self.env.now  # type: ignore[assignment]
        self._at(at_ps - now, priority, due)

    def arrive(self, rows: list[int], at_ps: int) -> None:
        """Rows arrive together at a time."""
        self._at(at_ps, ev.INPUT, lambda _: self.tell(ev.Arrived(rows)))

    def take_input(self, events: Iterator[tuple[int, ev.Event]]) -> None:
        """Arrivals and the close of the input, in the order of their times."""
        self.follow(ev.INPUT, ((at_ps, partial(self.tell, event)) for at_ps, event in events))

    def close_input(self, at_ps: int) -> None:
        """Nothing arrives after this time."""
        self._at(at_ps, ev.INPUT, lambda _: self.tell(ev.InputClosed()))

    def inject(self, event: ev.Event, at_ps: int) -> None:
        """Any other external event (cancellation, a row failure, a smaller pool, ...)."""
        self._at(at_ps, ev.turn(event), lambda _: self.tell(event))

    def add_fault(self, fault: Fault, gpus_per_engine: int) -> None:
        """Device trouble at its time; it acts at the next pass boundary, or at once for a loss. All
        GPUs of a pipeline are those of one engine here."""
        self.add_faults([fault], gpus_per_engine)

    def add_faults(self, faults: Sequence[Fault], gpus_per_engine: int) -> None:
        """Many of them, in the order of their times."""
        self.follow(
            ev.DEVICE,
            (
                (one.at_ps, partial(strike, self, one, *divmod(one.gpu, gpus_per_engine)))
                for one in faults
            ),
        )

    def run(self) -> None:
        """Until no event is left. Rows that nobody can serve any more fail by name."""
        self.env.run()
        table = self.table
        while self.runtime.unfinished and self.runtime.homeless:
            for row in self.runtime.homeless:
                # Not the clock's time: timers of steps that were cut may have run on.
                self._tell_at(ev.RowFailed(row, "no_device"), self.last_ps)
            self.env.run()
        if self.runtime.unfinished:
            stuck = [row for row in range(len(table)) if not table.ended(row)][:3]
            raise AssertionError("; ".join(table.story(row) for row in stuck))
        if self.progress is not None:
            self.progress(self.last_ps, self._rows_done, len(table))

    # -- events in, actions out -------------------------------------------------------------------

    def tell(self, event: ev.Event) -> None:
        """The runtime hears of an event, and what it answers is carried out."""
        now: int = self.env.now  # type: ignore[assignment]
        self._tell_at(event, now)

    def _tell_at(self, event: ev.Event, now: int) -> None:
        self.last_ps = now
        actions = self._on(event, now)
        self.events += 1
        if self.observer is not None:
            self.observer(event, now, actions)
        for action in actions:
            kind = type(action)
            if kind is Step:
                self._launch(action, now)  # type: ignore[arg-type]
            elif kind is act.Finished:
                self._rows_done += 1
                self._ended(action.row, action.reason, now)  # type: ignore[union-attr]
            elif kind is act.Cut:
                self._cut(action.engine, now)  # type: ignore[union-attr]
            elif kind not in QUIET:
                self._carry_out(action, now)
        if self.progress is not None and self.events % PROGRESS_EVERY == 0:
            self.progress(now, self._rows_done, len(self.table))

    def _carry_out(self, action: Action, now: int) -> None:
        """The rarer actions."""
        table = self.table
        if isinstance(action, act.Copy):
            self._copy(action, now)
        elif isinstance(action, act.Leave):
            self.recorder.stopped(action.rows, action.engine, LEFT, now)
            for row in action.rows:
                self.devices[action.engine].flight.remove(row)
        elif isinstance(action, act.Failed):
            self._rows_done += 1
            self.recorder.failed(action.row, action.code, action.why, now)
        elif isinstance(action, act.Switch):
            self._switch(action, now)
        elif isinstance(action, act.Wake):
            timer = ev.Timer(action.timer_id)
            if action.row >= 0:
                self.recorder.fell_asleep(action.row)
            self._at(max(0, action.at_ps - now), ev.OTHER, lambda _: self.tell(timer))
        elif isinstance(action, act.Extend):
            row = action.row
            assert self._stages is not None
            produced, output = table.v_produced[row], self._stages(row, table.v_stage[row])
            self.book.total[row] = min(produced + output, action.budget)

    # -- steps ------------------------------------------------------------------------------------

    def _launch(self, step: Step, now: int) -> None:
        engine = step.engine
        device = self.devices[engine]
        device.epoch, device.launched = step.epoch, self.events
        flight = device.flight
        flight.launch(step, now)
        if device.link.busy_ps > flight.begin_ps and flight.uses_link:
            flight.wait(0, device.link.free_ps)
        self.recorder.launched(step, flight.begin_ps, now)
        self.arm(engine, device, flight.report_ps)

    def arm(self, engine: int, device: Device, at_ps: int) -> None:
        """The engine's next report is at this time."""
        if at_ps > MOST_PS:
            raise too_long()
        event = device.end
        if event.queued:
            event = device.end = new_end(self.env, engine)
        event.queued = True
        event.callbacks = self._on_step_end
        env = self.env
        env.schedule(event, ev.STEP + engine, at_ps - env.now)  # type: ignore[arg-type]

    def _step_end(self, event: SimpyEvent) -> None:
        event.queued = False  # type: ignore[attr-defined]
        engine: int = event.number  # type: ignore[attr-defined]
        device = self.devices[engine]
        if device.end is event:
            self._landing = engine
            flight = device.flight
            if flight.step is None:
                self._drain(engine, device)
            elif flight.goes_on(self.env.now):  # type: ignore[arg-type]
                self.arm(engine, device, flight.report_ps)
            else:
                self._land(engine, device)
            self._landing = -1

    def _land(self, engine: int, device: Device) -> None:
        flight = device.flight
        now: int = self.env.now  # type: ignore[assignment]
        step = flight.step
        assert step is not None
        passes, why = flight.passes, flight.why
        base = flight.base()
        begin, end_ps = flight.begin_ps, flight.end_ps
        if self.lag and flight.uses_link:  # its last pass is in flight
            device.link.pass_asks(flight, passes - 1)
        end, done = flight.land()
        missed = flight.times.missed(passes) if done and step.until == "n" else 0
        self.passes += passes
        duration, stage_ps = flight.worked(now), flight.stage_ps(passes)
        recorder = self.recorder
        if step.chunks:
            recorder.first_tokens(step, end_ps)
        device.newest = step
        finished = self._finished(done) if done else []
        self._tell_at(ev.Landed(engine, end, step.epoch, finished, duration, why), now)
        pages = self.runtime.kv_pages(engine)
        recorder.step(step, passes, begin, end_ps, base, done, missed, pages)
        if stage_ps:
            recorder.stages(stage_ps)
        if self.lag and flight.step is None and (flight.end_ps > now or now > begin):
            self.arm(engine, device, flight.end_ps)

    def _drain(self, engine: int, device: Device) -> None:
        now: int = self.env.now  # type: ignore[assignment]
        self._tell_at(self._drained(engine, device, now), now)

    def _drained(self, engine: int, device: Device, now: int) -> ev.Drained:
        flight = device.flight
        done = flight.drain()
        return ev.Drained(engine, device.epoch, self._finished(done), flight.worked(now))

    def _finished(self, done: list[tuple[int, int, int]]) -> list[ev.Finish]:
        """Outcomes for the runtime, in order of rows; their times go into the record."""
        total, budget, ends = self.book.total, self.table.v_budget, self.recorder.v_end
        given, finished = self._reasons, []
        for row, _, at_ps in done:
            ends[row] = at_ps
            produced = total[row]
            reason = "length" if produced >= budget[row] else "stop"
            if given:
                reason = given.get((row, self.table.v_stage[row]), reason)
            finished.append((row, produced, reason))
        if len(finished) > 1:
            finished.sort()
        return finished

    def _cut(self, engine: int, now: int) -> None:
        device = self.devices[engine]
        # At equal time step ends go by engine number: when a later engine's end asks for the cut,
        # a boundary of this engine at the same time is behind us, unless this very end launched
        # the step.
        after = engine < self._landing and device.launched < self.events
        if device.flight.cut(now, after=after):
            self.arm(engine, device, device.flight.report_ps)

    # -- copies -----------------------------------------------------------------------------------

    def _copy(self, action: act.Copy, now: int) -> None:
        """Copies queue on the links that they cross, and with what passes stream there."""
        device, target = self.devices[action.engine], self.devices[action.to_engine]
        link, ways = self._way(action)
        end = now
        if link:
            begun = {engine: self._asks(engine, now) for engine, lane in ways if lane < OUT}
            lanes = [(self.devices[engine].link, lane) for engine, lane in ways]
            end = copy_over(lanes, copy_ps(action, device, target, link), now)
            for engine, passes in begun.items():
                if passes >= 0:  # of the launched step; those behind them find the link busy
                    self.retimed(engine, self.devices[engine], passes)
        copy_id = action.copy_id
        # A copy ends nowhere when HBM at either end of it is lost; hosts outlive their devices.
        lives = [one for one in (device, target) if one is target or action.from_pool == "hbm"]
        then = [one.life for one in lives]

        def done(_: SimpyEvent) -> None:
            if [one.life for one in lives] == then:
                self.tell(ev.CopiesDone(copy_id))

        self._at(end - now, ev.COPY, done)
        if action.purpose == "migrate":
            text = f"{len(action.rows)} rows to engine {action.to_engine}"
            self.recorder.mark(now, action.engine, "copy", text)

    def _asks(self, engine: int, now: int) -> int:
        """The pass in flight has its stream asked for before a copy on the engine's host link;
        passes of the launched step that have begun, -1 where none of it uses the link."""
        device = self.devices[engine]
        flight = device.flight
        if not flight.uses_link:
            return -1
        # At equal time step ends go by engine number, as for a cut.
        after = engine < self._landing and device.launched < self.events
        begun = flight.num_begun(now + 1 if after else now)
        if begun:
            device.link.pass_asks(flight, begun - 1)
        return begun

    def _way(self, action: act.Copy) -> tuple[str, list[tuple[int, int]]]:
        """The link whose rate counts, and the queues: (engine, lane). "" where the KV is in place
        already: batches of a pipeline share its HBM. What another engine's host holds comes over
        the host link of those that take it."""
        source, target = action.engine, action.to_engine
        own = DOWN if action.to_pool == "host" else UP
        if source == target:
            return "host", [(source, own)]
        in_host = action.from_pool == "host"
        if self.pipelines and source // self.batches == target // self.batches:
            return ("host", [(source, own)]) if in_host else ("", [])
        engines = self.plan.engines
        if engines[source].node != engines[target].node:
            return "inter", [(source, OUT), (target, IN)]
        if in_host:
            return "host", [(target, UP)]
        if self.cost.peers_over_host:
            return "intra", [(source, DOWN), (target, UP)]
        return "intra", [(source, OUT), (target, IN)]

    # -- layouts ----------------------------------------------------------------------------------

    def _switch(self, action: act.Switch, now: int) -> None:
        device = self.devices[action.engine]
        for row in action.rows:
            device.flight.remove(row)
        self.recorder.switched(action, now)
        life = device.life

        def ready(_: SimpyEvent) -> None:
            if device.life == life:
                device.layout = action.layout
                device.flight.reset(self.cost_of(action.layout))
                self.tell(ev.LayoutReady(action.engine, action.epoch))

        self._at(self.cost.switch_ps(), ev.LAYOUT, ready)

    def cost_of(self, layout: str) -> CostModel:
        """What passes of a layout cost now."""
        if layout == HOME:
            return self.cost
        assert self.layout_cost is not None
        return self.layout_cost(layout)

    # -- troubles ---------------------------------------------------------------------------------

    def retimed(self, engine: int, device: Device, begun: int) -> None:
        """Passes of the engine, but for the `begun` first of its step, take another time now, or
        find its link busy."""
        flight, link = device.flight, device.link
        if link.busy_ps > flight.begin_ps and flight.uses_link:
            flight.wait(begun, link.free_ps)
        self.arm(engine, device, flight.report_ps)

    def lose(self, engine: int, gpu: int, device: Device, now: int) -> None:
        """A device is lost, and the pass in flight with it."""
        flight = device.flight
        if not self.runtime.alive(engine):
            self.tell(ev.DeviceLost(engine, gpu, flight.q, []))
            return
        step, begin, base = flight.step, flight.begin_ps, flight.base()
        before = flight.q
        end, done = flight.lose(now)
        finished = self._finished(done)
        if step is not None and end > step.q0:
            ran = end - step.q0
            self.passes += ran
            span = begin + flight.elapsed(ran)
            pages = self.runtime.kv_pages(engine)
            missed = flight.times.missed(ran) if done and step.until == "n" else 0
            self.recorder.step(step, ran, begin, span, base, done, missed, pages)
            stage_ps = flight.stage_ps(ran)
            if stage_ps:
                self.recorder.stages(stage_ps)
        elif end < before:  # the pass in flight never ended
            self.passes -= 1
            assert device.newest is not None
            self.recorder.no_first_tokens(device.newest, flight.last_end())
        self.recorder.stopped(flight.clear(), engine, LOST, now)
        device.end = new_end(self.env, engine)
        device.life += 1
        device.link.clear()
        device.layout = HOME
        flight.reset(self.cost)
        flight.end_ps = flight.covered_ps = now
        self.tell(ev.DeviceLost(engine, gpu, end, finished))
