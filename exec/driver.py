"""The executor's event loop: carries out the runtime's actions on one worker. It takes no decision.

One device, one engine. Passes come from `batchgen.step.Composition`; between them the loop delivers
what happened meanwhile (arrivals, finished copies, timers), before the step's own report. With
depth 2 the next pass begins before the outcome of the one before is known, and a step is reported
one pass early (DESIGN section 5); on a device with queues that pass is even launched before the one
before it has ended, so that the device never waits for the host.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchgen import actions as act
from batchgen import events as ev
from batchgen.errors import IllegalTransition
from batchgen.exec.record import DriverRecord
from batchgen.step import Composition, Pass, Step
from batchgen.units import PS_PER_S

if TYPE_CHECKING:
    from batchgen.actions import Action
    from batchgen.exec.batch import PassResult
    from batchgen.exec.clock import Clock
    from batchgen.exec.worker import Worker
    from batchgen.runtime.core import Runtime

Observer = Callable[[ev.Event, int, list[Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flying:
    """A pass that has begun: its step, when, and the KV tokens that its rows read."""

    one: Pass
    step: Step
    ticket: Any
    began_ps: int
    contexts: list[int]


class Driver:
    """Runs rows of a runtime's table on a worker until all have ended.

    Every row must be known to the worker before it arrives. `observer` sees each event with its
    actions (the decision log). After `run`, `record` holds steps, passes and times of rows. A row
    that has not ended `row_timeout_ps` after its first pass began fails by "timeout".
    """

    def __init__(
        self,
        runtime: Runtime,
        worker: Worker,
        clock: Clock,
        *,
        observer: Observer | None = None,
        progress: Callable[[int, int, int], None] | None = None,
        on_finish: Callable[[int, str], None] | None = None,
        ahead: bool | None = None,
        stopping: Callable[[], bool] | None = None,
        row_timeout_ps: int | None = None,
    ) -> None:
        self.runtime = runtime
        self.table = runtime.table
        self.worker = worker
        self.clock = clock
        self.observer = observer
        self.progress = progress
        self.on_finish = on_finish
        self.stopping = stopping
        self.stopped = False
        self.row_timeout_ps = row_timeout_ps
        self._begun: dict[int, int] = {}  # with a limit: unfinished row -> when it began
        self.lag = runtime.plan.lag
        self.reasons: dict[int, str] = {}
        self.why: dict[int, str] = {}
        self.record = DriverRecord(len(self.table))
        self._composition = Composition(self.lag)
        self._runner = worker.runner(runtime.plan.depth)
        # A simulated clock tells of events in the order of the simulator's.
        self._ahead = self._runner.ahead and (not clock.simulated if ahead is None else ahead)
        self._heap: list[tuple[int, int, int, ev.Event]] = []
        self._sequence = 0
        self._step: Step | None = None  # launched and not reported
        self._flying: deque[Flying] = deque()  # the oldest first; at most one without `ahead`
        self._copies: dict[int, int] = {}  # ticket of the copier -> copy of the runtime
        self._tickets: dict[int, int] = {}  # and the other way round, until it is told
        self._streams: dict[int, list[int]] = {}  # ticket -> rows whose closed pages it takes down
        self._told_ps = 0
        self._covered_ps = self._step_began_ps = self._ended_ps = self._waited_ps = 0
        self._running = self._decoded = (
            0  # rows of the step's first pass, and summed over its passes
        )
        self._pending: list[ev.Finish] = []
        self._epoch = 0

    # -- the loop ---------------------------------------------------------------------------------

    def schedule(self, event: ev.Event, at_ps: int) -> None:
        """An event that will happen at a time of the run."""
        self._sequence += 1
        heapq.heappush(self._heap, (at_ps, ev.turn(event), self._sequence, event))

    def run(self) -> None:
        """Until every row that arrived has ended and nothing more is scheduled, or until `stopping`
        says so: then passes in flight end, their tokens are known to the worker, and no more."""
        with self._runner:
            while True:
                if self.stopping is not None and self.stopping():
                    self._stop()
                    return
                if self._begun:
                    self._time_out()
                if self._flying:
                    self._finish_pass()
                elif self._step is not None:
                    self._deliver(self.clock.now_ps())
                    if not self._flying and self._step is not None:
                        self._begin()
                        self._at_once()
                elif self._heap or (self._copies and not self.clock.simulated):
                    self._wait()
                else:
                    break
        if self.runtime.unfinished:
            raise IllegalTransition(f"{self.runtime.unfinished} rows are left and nothing happens")

    def in_flight(self) -> list[int]:
        """Rows of the oldest pass that has not ended. Any thread may ask."""
        try:
            one = self._flying[0].one
        except IndexError:
            return []
        return [*one.decodes, *(chunk[0] for chunk in one.chunks)]

    def _stop(self) -> None:
        """What is in flight comes down; nobody is told, for the run ends here."""
        self.stopped = True
        while self._flying:
            self._runner.collect(self._flying.popleft().ticket)

    def _time_out(self) -> None:
        """Rows whose time is over fail; they began in the order in which they are listed."""
        assert self.row_timeout_ps is not None
        now = self.clock.now_ps()
        while self._begun:
            row, began_ps = next(iter(self._begun.items()))
            if now - began_ps < self.row_timeout_ps:
                return
            del self._begun[row]
            if self.record.end_ps[row] < 0:  # else it has ended, and its step has not
                self.schedule(ev.RowFailed(row, "timeout"), now)

    def _wait(self) -> None:
        """No step is launched: until the next event of the heap, or until a copy is over."""
        at_ps = self._heap[0][0] if self._heap else None
        if self._copies and not self.clock.simulated:
            wait_s = None if at_ps is None else max(0, at_ps - self.clock.now_ps()) / PS_PER_S
            self.worker.copier.wait_some(wait_s)
            self._deliver(self.clock.now_ps())
        elif at_ps is not None:
            self.clock.wait_until(at_ps)
            self._deliver(max(at_ps, 0))

    def _deliver(self, until_ps: int) -> None:
        """Everything that has happened by `until_ps`, in order."""
        self._collect_copies(until_ps)
        while self._heap and self._heap[0][0] <= until_ps:
            at_ps, _, _, event = heapq.heappop(self._heap)
            self.clock.at(at_ps)
            if type(event) is ev.CopiesDone:
                event = self._copied(event.copy_id)
            self._tell(event, at_ps)

    def _collect_copies(self, until_ps: int) -> None:
        """What the copier has finished; with a simulated clock the clock has said when."""
        for done in self.worker.copier.finished():
            if done.ticket in self._streams:
                rows = self._streams.pop(done.ticket)
                for row in rows if done.error else ():
                    self.why[row] = f"its KV could not be copied to the host: {done.error}"
                    self.schedule(ev.RowFailed(row, "copy_failed"), until_ps)
                continue
            copy_id = self._copies.pop(done.ticket)
            if not self.clock.simulated:
                at_ps = max(self.clock.from_ns(done.at_ns), self._told_ps)
                self.schedule(ev.CopiesDone(copy_id), min(at_ps, until_ps))

    def _copied(self, copy_id: int) -> ev.CopiesDone | ev.CopiesFailed:
        """The end of a copy of the runtime: how it ended in truth."""
        ticket, copier = self._tickets.pop(copy_id), self.worker.copier
        copier.wait(ticket)
        if copier.error(ticket):
            self.worker.undo(ticket)
            return ev.CopiesFailed(copy_id)
        return ev.CopiesDone(copy_id)

    def _tell(self, event: ev.Event, now: int) -> None:
        self._told_ps = now
        actions = self.runtime.on(event, now)
        if self.observer is not None:
            self.observer(event, now, actions)
        for action in actions:
            self._carry_out(action, now)

    # -- actions ----------------------------------------------------------------------------------

    def _carry_out(self, action: Action, now: int) -> None:
        if isinstance(action, Step):
            self._step, self._epoch = action, action.epoch
            self._composition.launch(action)
            if not self._flying:
                self._covered_ps = now
        elif isinstance(action, act.Cut):
            self._composition.cut()
        elif isinstance(action, act.Leave):
            self._composition.forget(action.rows)
        elif isinstance(action, act.Finished):
            self._ended(action.row, action.reason, now)
        elif isinstance(action, act.Failed):
            self.why[action.row] = action.why or self._why(action)
            self._ended(action.row, action.code, now)
        elif isinstance(action, act.Wake):
            self.schedule(ev.Timer(action.timer_id), max(now, action.at_ps))
            if action.row >= 0:
                sleeper = action.row
                self.record.fell_asleep(sleeper)
                self._runner.do(lambda: self.worker.trim(sleeper))
        elif not isinstance(action, act.Place):
            self._move(action)

    def _why(self, action: act.Failed) -> str:
        if action.code == "timeout" and self.row_timeout_ps is not None:
            return f"not ended {self.row_timeout_ps / PS_PER_S:g} s after its first pass began"
        return self.why.get(action.row, "")

    def _move(self, action: Action) -> None:
        """What concerns pages and tokens of rows."""
        worker, do = self.worker, self._runner.do
        if isinstance(action, act.Copy):
            copy = action

            def start() -> None:
                if copy.purpose == "suspend":
                    computed = [worker.computed_tokens(row) for row in copy.rows]
                    ticket = worker.checkpoint(copy.rows, computed)
                else:
                    ticket = worker.restore(copy.rows, copy.tokens)
                self._copies[ticket] = copy.copy_id
                self._tickets[copy.copy_id] = ticket

            do(start)
            done_ps = self.clock.copy_done(sum(action.tokens), action.to_pool)
            if done_ps is not None:
                self.schedule(ev.CopiesDone(action.copy_id), done_ps)
        elif isinstance(action, act.Release):
            freed, pool = action.rows, action.pool

            def release() -> None:
                for row in freed:
                    worker.release(row, pool)

            do(release)
        elif isinstance(action, act.Adopt):
            adopted = action
            do(lambda: worker.adopt(adopted.row, self._keys(adopted.row, 0, adopted.pages)))
        elif isinstance(action, act.Publish):
            known = action
            keys = self._keys(known.row, known.first, known.count)
            do(lambda: worker.publish(known.row, known.first, keys))
        elif isinstance(action, act.Evict):
            gone = [key for run in action.runs for key in self._keys(*run)]
            do(lambda: worker.forget(gone))
        elif isinstance(action, act.Extend):
            more = action
            assert self.runtime.bodies is not None
            ids = self.runtime.bodies.follow_ups.pop(more.row, None)
            do(lambda: worker.extend(more.row, ids, more.tokens, more.budget))
            do(lambda: worker.trim(more.row))
        else:
            raise IllegalTransition(f"one device cannot carry out {type(action).__name__}")

    def _keys(self, row: int, first: int, count: int) -> Sequence[int]:
        assert self.runtime.page_keys is not None
        return self.runtime.page_keys(row)[first : first + count]

    def _ended(self, row: int, code: str, now: int) -> None:
        self.reasons[row] = code
        self._begun.pop(row, None)
        self.record.ended(row, code, now)

        def forget() -> None:
            if self.on_finish is not None:
                self.on_finish(row, code)
            self.worker.forget_row(row)

        self._runner.do(forget)

    # -- passes -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The next pass of the launched step begins now."""
        step, one = self._step, self._composition.next_pass()
        assert step is not None
        assert one is not None
        began_ps = self.clock.now_ps()
        if one.number == 0:
            self._step_began_ps, self._decoded = began_ps, 0
            self._running = len(one.decodes)
        self._decoded += len(one.decodes)
        if self.row_timeout_ps is not None:
            for row, _, _, _ in one.chunks:
                if row not in self.reasons:
                    self._begun.setdefault(row, began_ps)
        contexts = self.worker.contexts(one.decodes)
        tokens = sum(size for _, _, size, _ in one.chunks)
        streamed = len(one.decodes) + tokens if step.checkpoint == "host" else 0
        self.clock.pass_begins(contexts, one.chunks, streamed)
        ticket = self._runner.launch(one)
        self._flying.append(
            Flying(one=one, step=step, ticket=ticket, began_ps=began_ps, contexts=contexts)
        )

    def _at_once(self) -> None:
        """With lag a step of one pass is reported when it begins, after what else happens then."""
        if self.lag and self._composition.over():
            self._land()

    def _finish_pass(self) -> None:
        """The oldest pass in flight ends: deliver what happened before, then its outcomes."""
        if self._ahead and self._may_begin() and len(self._flying) == 1:
            self._begin()
        ours = self._flying[0]
        result = self._runner.collect(ours.ticket)
        one, step = ours.one, ours.step
        began_ps = max(ours.began_ps, self._ended_ps)  # launched before, perhaps
        self.clock.at(began_ps)
        end_ps = self.clock.pass_done()
        self._waited_ps += self.clock.waited_ps
        self._deliver(end_ps)
        self.clock.at(end_ps)
        self._ended_ps = end_ps
        self.record.one_pass(ours.contexts, one.chunks, began_ps, end_ps)
        self._flying.popleft()
        finished = self._outcomes(step, one, result, end_ps)
        if self.lag and not self._flying and self._may_begin():
            self._begin()  # what has just ended is not known yet: rows may run as ghosts
        self._composition.report(finished)
        for row, code, why in result.failed:
            self.why[row] = why
            self._tell(ev.RowFailed(row, code), end_ps)
        if self._step is not None:
            if self._composition.over():
                self._land()
            elif not self.lag:
                self._begin()
        elif self.lag and not self._flying:
            now = self.clock.now_ps()
            self._tell(ev.Drained(0, self._epoch, self._take(), self._busy(now)), now)

    def _may_begin(self) -> bool:
        """Whether a step is launched that has a next pass, as far as is known."""
        return self._step is not None and not self._composition.over()

    def _outcomes(self, step: Step, one: Pass, result: PassResult, end_ps: int) -> list[int]:
        """Note who ended or has a first token."""
        completed = [row for row, _, _, last in one.chunks if last]
        self.record.first_tokens(completed, end_ps)
        for row, reason in result.finished:
            self._pending.append((row, self.worker.rows.num_produced(row), reason))
            self.record.end_ps[row] = end_ps
        if step.checkpoint == "host" and completed:
            self._stream(completed, whole=True)
        return [row for row, _ in result.finished]

    def _take(self) -> list[ev.Finish]:
        pending, self._pending = self._pending, []
        return sorted(pending)

    def _busy(self, now: int) -> int:
        """Time of passes since the last report; waiting for a copy is no slowness of theirs."""
        busy, self._covered_ps = now - self._covered_ps - self._waited_ps, now
        self._waited_ps = 0
        return busy

    def _land(self) -> None:
        """Report the step."""
        step, composition = self._step, self._composition
        assert step is not None
        if step.checkpoint == "host":
            self._stream(composition.decodes, whole=False)
        self._step = None
        now = self.clock.now_ps()
        passes, began_ps, decoded = composition.passes, self._step_began_ps, self._decoded
        finished = self._take()
        self._check_pages()
        event = ev.Landed(
            step.engine,
            step.q0 + passes,
            step.epoch,
            finished,
            self._busy(now),
            composition.why(),
        )
        self._tell(event, now)
        pages = self.runtime.kv_pages(0)
        self.record.one_step(
            step, passes, began_ps, now, self._running, decoded, len(finished), pages
        )
        if self.progress is not None:
            self.progress(now, len(self.reasons), len(self.table))

    def _check_pages(self) -> None:
        """Physical pages never exceed the pool, or the runtime has promised too much."""
        pool = self.runtime.cluster.engines[0].ranks[0]
        used = self.worker.pages_used("hbm")
        if used > pool.size + pool.debt:
            raise IllegalTransition(f"{used} pages in a pool of {pool.size}")

    def _stream(self, rows: Sequence[int], *, whole: bool) -> None:
        """Closed pages of decoding rows go to the host, whole prompts as soon as they are
        complete."""
        worker, page = self.worker, self.worker.page_tokens

        def stream() -> None:
            known = [row for row in rows if worker.rows.resident(row)]
            computed = [worker.computed_tokens(row) for row in known]
            upto = computed if whole else [tokens - tokens % page for tokens in computed]
            ticket = worker.checkpoint(known, upto)
            self._streams[ticket] = worker.copied_rows(ticket)

        self._runner.do(stream)
