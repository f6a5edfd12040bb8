"""A slow, plain backend: pass by pass through `Composition`, in simulated time by the toy cost.

It shares nothing with batchgen.sim but the contract, so that each checks the other, and it is what
the runtime is tested with. No closed forms: a step is its passes, one after the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from batchgen import actions as act
from batchgen import events as ev
from batchgen.check.device import Device
from batchgen.check.toy import ToyCost
from batchgen.log import Entry
from batchgen.plan import Plan
from batchgen.runtime.core import Runtime
from batchgen.sequence import Status
from batchgen.step import Composition, Pass, Step


class Stuck(AssertionError):
    """A run does not end, or stands still with rows that have not ended."""


class Walker:
    """Runs one runtime to the end of its rows."""

    def __init__(
        self,
        runtime: Runtime,
        plan: Plan,
        lengths: Sequence[int],
        *,
        cost: Callable[[str], ToyCost],
        stages: dict[int, list[int]] | None = None,
        observer: Callable[[Entry], None] | None = None,
        limit: int = 400_000,
    ) -> None:
        self.runtime, self.plan, self.table = runtime, plan, runtime.table
        self.lag = plan.lag
        self.cost = cost
        self.true = list(lengths)
        self.stages = {row: list(more) for row, more in (stages or {}).items()}
        self.devices = [
            Device(Composition(self.lag, self.table.v_rank), cost("home")) for _ in plan.engines
        ]
        self.now = 0
        self.heap: list[tuple[int, int, int, int, Callable[[], None]]] = []
        self.sequence = 0
        self.entries: list[Entry] = []
        self.observer = observer
        self.limit = limit
        self.first = [-1] * len(lengths)
        self.end = [-1] * len(lengths)
        self.finish_q: dict[int, tuple[int, int]] = {}
        self.tokens = [int(value) for value in self.table.produced]
        self.computed = [0] * len(lengths)  # KV tokens, counted by this backend
        self.reasons: dict[int, str] = {}
        self.why: dict[int, str] = {}
        self.passes: list[list[tuple[Any, ...]]] = [[] for _ in plan.engines]
        self.others: list[tuple[Any, ...]] = []
        self.copy_fails: Callable[[int], bool] = lambda copy_id: False

    # -- time -------------------------------------------------------------------------------------

    def at(self, time: int, kind: int, engine: int, call: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (time, kind, engine, self.sequence, call))

    def event(self, event: ev.Event, time: int) -> None:
        self.at(time, ev.turn(event), 0, lambda: self.tell(event))

    def run(self) -> None:
        count = 0
        while True:
            while self.heap:
                count += 1
                if count > self.limit:
                    raise Stuck(f"no end after {self.limit} events: {self.stuck()}")
                self.now, _, _, _, call = heapq.heappop(self.heap)
                call()
            if not self.runtime.unfinished:
                return
            rows = list(self.runtime.homeless)
            if not rows:
                raise Stuck(f"nothing is in flight any more: {self.stuck()}")
            self.now = self.entries[-1].t
            for row in rows:
                self.tell(ev.RowFailed(row, "no_device"))

    def stuck(self) -> str:
        rows = [row for row in range(len(self.table)) if not self.table.ended(row)]
        return "; ".join(self.table.story(row) for row in rows[:3])

    # -- events in, actions out -------------------------------------------------------------------

    def tell(self, event: ev.Event) -> None:
        actions = self.runtime.on(event, self.now)
        entry = Entry(self.now, event, list(actions))
        self.entries.append(entry)
        for action in actions:
            self.carry_out(action)
        if self.observer is not None:
            self.observer(entry)

    def carry_out(self, action: act.Action) -> None:
        if isinstance(action, Step):
            self.launch(action)
        elif isinstance(action, act.Cut):
            device = self.devices[action.engine]
            device.composition.cut(begun=not device.waits)
            self.check_landing(action.engine)
        elif isinstance(action, act.Leave):
            self.devices[action.engine].composition.forget(action.rows)
        elif isinstance(action, act.Finished | act.Failed):
            self.ended(action)
        elif isinstance(action, act.Copy):
            self.copy(action)
        elif isinstance(action, act.Extend):
            row, output = action.row, self.stages[action.row].pop(0)
            self.true[row] = min(self.tokens[row] + output, action.budget)
        elif isinstance(action, act.Switch):
            self.switch(action)
        elif isinstance(action, act.Wake):
            timer = ev.Timer(action.timer_id)
            self.event(timer, max(self.now, action.at_ps))

    def ended(self, action: act.Finished | act.Failed) -> None:
        row = action.row
        assert row not in self.reasons, "ended twice"
        self.reasons[row] = action.reason if isinstance(action, act.Finished) else action.code
        if isinstance(action, act.Failed):
            self.why[row] = action.why
        if self.end[row] < 0 or self.reasons[row] not in ("stop", "length"):
            self.end[row] = self.now

    def copy(self, action: act.Copy) -> None:
        device = self.devices[action.engine]
        per_rank: dict[int, int] = {}
        for rank, tokens in zip(action.ranks, action.tokens, strict=True):
            assert tokens >= 0
            per_rank[rank] = per_rank.get(rank, 0) + tokens
        nodes = [self.plan.engines[one].node for one in (action.engine, action.to_engine)]
        own, link = action.engine == action.to_engine, "inter"
        if nodes[0] == nodes[1]:
            link = "host" if own or action.from_pool == "host" else "intra"
        time = max(device.cost.copy_ps(tokens, link) for tokens in per_rank.values())  # type: ignore[arg-type]
        ends = [device, self.devices[action.to_engine]]
        if own:
            queues = [(device, "down" if action.to_pool == "host" else "up")]
        elif link == "host":
            queues = [(ends[1], "up")]
        elif link == "intra" and self.cost("home").peers_over_host:
            queues = [(device, "down"), (ends[1], "up")]
        else:
            queues = [(device, "out"), (ends[1], "in")]
        start = max(self.now, *(one.free_ps.get(lane, 0) for one, lane in queues))
        end = start + time
        for one, lane in queues:
            one.free_ps[lane] = end
        bad = self.copy_fails(action.copy_id)
        done = ev.CopiesFailed(action.copy_id) if bad else ev.CopiesDone(action.copy_id)
        ends = ends if action.from_pool == "hbm" else ends[1:]
        lives = [one.life for one in ends]

        def arrive() -> None:
            if [one.life for one in ends] == lives:
                self.tell(done)

        self.at(end, ev.COPY, 0, arrive)
        rows = sorted(zip(action.rows, action.tokens, strict=True))
        self.others.append((self.now, action.purpose, action.engine, action.to_engine, rows))

    def switch(self, action: act.Switch) -> None:
        device = self.devices[action.engine]
        assert device.flying is None
        device.composition.clear()
        life = device.life
        self.others.append((self.now, "switch", action.engine, action.layout, sorted(action.rows)))

        def ready() -> None:
            if device.life == life:
                device.cost = self.cost(action.layout)
                self.tell(ev.LayoutReady(action.engine, action.epoch))

        self.at(self.now + device.cost.switch_ps(), ev.LAYOUT, 0, ready)

    # -- passes -----------------------------------------------------------------------------------

    def launch(self, step: Step) -> None:
        device = self.devices[step.engine]
        assert device.step is None, "two steps in one slot"
        assert step.q0 == device.q
        device.step = step
        device.composition.launch(step)
        for row in step.joined:
            device.dead.pop(row, None)
        if device.flying is None:
            self.begin(step.engine)
            if self.lag:
                self.at_once(step.engine)

    def at_once(self, engine: int) -> None:
        """With lag a step of one pass is reported when it begins, in the turn of its engine."""
        device = self.devices[engine]
        step = device.step
        device.waits = True

        def turn() -> None:
            if device.step is step and step is not None:
                device.waits = False
                if device.composition.over():
                    self.land(engine)

        self.at(self.now, ev.STEP, engine, turn)

    def begin(self, engine: int) -> None:
        """The next pass of the launched step begins now."""
        device = self.devices[engine]
        one = device.composition.next_pass()
        assert one is not None
        assert device.step is not None
        self.check_pass(engine, device, one)
        device.flying, device.flying_step, device.flying_q = one, device.step, device.q
        device.q += 1
        device.began_ps = self.now
        end = device.begin_ps(one, self.table, self.computed, self.now)
        life = device.life
        self.at(end, ev.STEP, engine, lambda: self.pass_ended(engine, life))

    def check_pass(self, engine: int, device: Device, one: Pass) -> None:
        """What a pass may hold, counted by this backend alone."""
        for row, start, size, _ in one.chunks:
            assert size >= 1
            device.dead.pop(row, None)
            if start == 0 or self.computed[row] != start:  # adopted pages, restored KV
                self.computed[row] = start
        rows = [*one.decodes, *(row for row, *_ in one.chunks)]
        assert rows, "an empty pass"
        assert len(set(rows)) == len(rows), "twice in one pass"

    def pass_ended(self, engine: int, life: int) -> None:
        device = self.devices[engine]
        if device.life != life or device.flying is None:
            return
        one, step = device.flying, device.flying_step
        assert step is not None
        device.busy_ps += self.now - device.began_ps - device.late_ps  # waiting is no slowness
        device.flying = None
        q, same = device.flying_q, device.step is step
        finished = self.outcomes(engine, device, one, q)
        if self.lag and device.step is not None and not device.composition.over():
            self.begin(engine)  # what has just ended is not known yet: rows may run as ghosts
        alive = [row for row in one.decodes if row not in device.dead or row in finished]
        self.passes[engine].append((q, sorted(alive), sorted(one.chunks), sorted(finished)))
        device.composition.report(finished)
        if device.step is not None:
            if device.composition.over():
                self.land(engine)
            elif not self.lag:
                assert same
                self.begin(engine)
        elif self.lag and device.flying is None:
            report = ev.Drained(engine, self.epoch(engine), device.take(), device.busy())
            self.tell(report)

    def check_landing(self, engine: int) -> None:
        """A cut may end a step whose last pass has begun already."""
        device = self.devices[engine]
        if self.lag and device.step is not None and device.composition.passes and not device.waits:
            assert not device.composition.over(), "a cut step is reported when its pass begins"

    def outcomes(self, engine: int, device: Device, one: Pass, q: int) -> list[int]:
        finished: list[int] = []
        for row in one.decodes:
            if row in device.dead or (self.lag and self.finish_q.get(row) == (engine, q - 1)):
                continue  # a dead row, or a ghost: its token is dropped
            assert not self.gone(row), self.table.story(row)
            self.computed[row] += 1
            self.token(device, row, finished, (engine, q))
        for row, start, size, last in one.chunks:
            self.computed[row] = start + size
            if last:
                self.token(device, row, finished, (engine, q))
        return finished

    def gone(self, row: int) -> bool:
        return self.tokens[row] >= self.true[row]

    def token(self, device: Device, row: int, finished: list[int], at: tuple[int, int]) -> None:
        self.tokens[row] += 1
        if self.first[row] < 0:
            self.first[row] = self.now
        if self.gone(row):
            finished.append(row)
            self.finish_q[row] = at
            self.end[row] = self.now
            produced = self.tokens[row]
            reason = "length" if produced >= self.table.v_budget[row] else "stop"
            device.pending.append((row, produced, reason))
            if self.plan_static(device):
                device.dead[row] = self.computed[row]

    @staticmethod
    def plan_static(device: Device) -> bool:
        return device.flying_step is not None and device.flying_step.until == "all"

    def epoch(self, engine: int) -> int:
        return self.runtime.cluster.engines[engine].epoch

    def land(self, engine: int) -> None:
        device = self.devices[engine]
        step, composition = device.step, device.composition
        assert step is not None
        device.step = None
        end = step.q0 + composition.passes
        self.tell(
            ev.Landed(engine, end, step.epoch, device.take(), device.busy(), composition.why())
        )

    # -- devices ----------------------------------------------------------------------------------

    def slow(self, engine: int, gpu: int, factor: int) -> None:
        self.devices[engine].slow(gpu, factor, self.plan.engines[engine].num_gpus)

    def lose(self, engine: int, gpu: int) -> None:
        device = self.devices[engine]
        alive = not device.lost
        device.lost.add(gpu)
        if not alive:
            self.tell(ev.DeviceLost(engine, gpu, device.q, []))
            return
        end = device.q
        if device.flying is not None:
            end -= 1
            for row, start, _, _ in device.flying.chunks:
                self.computed[row] = start
        device.q = end
        finished = device.take()
        device.forget()
        device.cost = self.cost("home")
        self.tell(ev.DeviceLost(engine, gpu, end, finished))

    def back(self, engine: int, gpu: int) -> None:
        device = self.devices[engine]
        device.lost.discard(gpu)
        self.tell(ev.DeviceBack(engine, gpu))

    def all_ended(self) -> bool:
        return all(status >= Status.DONE for status in self.table.status)
