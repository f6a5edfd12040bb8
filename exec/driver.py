"""The executor's event loop: carries out the runtime's actions on one worker. It takes no decision.

One device, one engine. A step is unrolled by the core and run pass by pass; between passes the loop
delivers what happened meanwhile (arrivals, finished copies), before the step's own end.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen import actions as act
from batchgen import events as ev
from batchgen.errors import IllegalTransition
from batchgen.report import record
from batchgen.sequence import Status
from batchgen.step import Step, ended_by, unroll

if TYPE_CHECKING:
    from batchgen.actions import Action
    from batchgen.exec.clock import Clock
    from batchgen.exec.worker import Worker
    from batchgen.runtime.core import Runtime

Observer = Callable[[ev.Event, int, list[Any]], None]

STEP_COLUMNS = tuple(name for name in record.STEP_COLUMNS if name not in record.FLOAT_COLUMNS)
PASS_COLUMNS = (
    "decodes",
    "context",
    "chunk_tokens",
    "chunk_pairs",
    "chunk_reads",
    "samples",
    "duration_ps",
    "gap_ps",
)

_ARRIVAL, _OTHER, _COPY = range(3)


class Driver:
    """Runs rows of a runtime's table on a worker until all have ended.

    Every row must be known to the worker before it arrives. `observer` sees each event with its
    actions (the decision log). After `run`, `steps` and `passes` hold the record of the run; the
    gap of a pass is the time since the one before it (decisions, copies, waiting; 0 at first).
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
    ) -> None:
        self.runtime = runtime
        self.table = runtime.table
        self.worker = worker
        self.clock = clock
        self.observer = observer
        self.progress = progress
        self.on_finish = on_finish
        self.reasons: dict[int, str] = {}
        self.first_token_ps = np.full(len(self.table), -1, dtype=np.int64)
        self.end_ps = np.full(len(self.table), -1, dtype=np.int64)
        self.steps = {name: array("q") for name in STEP_COLUMNS}
        self.passes = {name: array("q") for name in PASS_COLUMNS}
        self._heap: list[tuple[int, int, int, ev.Event]] = []
        self._sequence = 0
        self._running: list[int] = []
        self._launched: Step | None = None
        self._cut = False
        self._pass_end_ps = 0

    # -- the loop ---------------------------------------------------------------------------------

    def schedule(self, event: ev.Event, at_ps: int) -> None:
        """An external event that will happen at a time of the run."""
        kind = _ARRIVAL if isinstance(event, ev.Arrived | ev.InputClosed) else _OTHER
        self._push(at_ps, kind, event)

    def _push(self, at_ps: int, kind: int, event: ev.Event) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_ps, kind, self._sequence, event))

    def run(self) -> None:
        """Until every row that arrived has ended and nothing more is scheduled."""
        while True:
            if self._launched is not None:
                self._run_step(self._launched)
            elif self._heap:
                at_ps = self._heap[0][0]
                self.clock.wait_until(at_ps)
                self._deliver(max(at_ps, 0))
            else:
                break
        if self.runtime.unfinished:
            raise IllegalTransition(f"{self.runtime.unfinished} rows are left and nothing happens")

    def _deliver(self, until_ps: int) -> None:
        """Everything that has happened by `until_ps`, in order."""
        while self._heap and self._heap[0][0] <= until_ps:
            at_ps, _, _, event = heapq.heappop(self._heap)
            self.clock.at(at_ps)
            self._tell(event, at_ps)

    def _tell(self, event: ev.Event, now: int) -> None:
        actions = self.runtime.on(event, now)
        if self.observer is not None:
            self.observer(event, now, actions)
        for action in actions:
            self._carry_out(action, now)

    def _carry_out(self, action: Action, now: int) -> None:
        worker = self.worker
        if isinstance(action, Step):
            self._launched = action
        elif isinstance(action, act.Finished | act.Failed):
            code = action.reason if isinstance(action, act.Finished) else action.code
            self.reasons[action.row] = code
            if self.end_ps[action.row] < 0:
                self.end_ps[action.row] = now
            if action.row in self._running:
                self._running.remove(action.row)
            if self.on_finish is not None:
                self.on_finish(action.row, code)
            worker.forget_row(action.row)
        elif isinstance(action, act.Copy):
            if action.purpose == "checkpoint":
                upto = [worker.computed_tokens(row) for row in action.rows]
                worker.checkpoint(action.rows, upto)
            else:
                worker.restore(action.rows, action.tokens)
            done_ps = self.clock.copy_done(sum(action.tokens))
            self._push(done_ps, _COPY, ev.CopiesDone(action.copy_id))
        elif isinstance(action, act.Release):
            for row in action.rows:
                worker.release(row, action.pool)
        elif isinstance(action, act.Cut):
            self._cut = True
        elif isinstance(action, act.Wake):
            self._push(max(now, action.at_ps), _OTHER, ev.Timer(action.timer_id))
        elif not isinstance(action, act.Place):
            raise IllegalTransition(f"one device cannot carry out {type(action).__name__}")

    # -- steps ------------------------------------------------------------------------------------

    def _run_step(self, step: Step) -> None:
        table, worker, clock = self.table, self.worker, self.clock
        self._launched = None
        self._cut = False
        start_ps = clock.now_ps()
        streaming = step.checkpoint == "host"
        finished: list[tuple[int, int, str]] = []
        passes = decoded = 0
        alive: list[int] = []
        plan = unroll(step, self._running)
        gone: list[int] | None = None
        while True:
            try:
                current = next(plan) if gone is None else plan.send(gone)
            except StopIteration:
                break
            began_ps = clock.now_ps()
            contexts = [worker.computed_tokens(row) + 1 for row in current.decodes]
            result = worker.run_pass(current.decodes, current.chunks)
            tokens = sum(size for _, _, size, _ in current.chunks)
            end_ps = clock.pass_done(
                contexts, current.chunks, len(contexts) + tokens if streaming else 0
            )
            self._record_pass(contexts, current.chunks, began_ps, end_ps)
            passes += 1
            decoded += len(contexts)
            gone = [row for row, _ in result.finished]
            finished.extend((row, current.number, reason) for row, reason in result.finished)
            for row, code in result.failed:
                self._push(end_ps, _OTHER, ev.RowFailed(row, code))
            self.end_ps[gone] = end_ps
            for row, _, _, last in current.chunks:
                if last and self.first_token_ps[row] < 0:
                    self.first_token_ps[row] = end_ps
            dead = set(gone)
            alive = [row for row in current.decodes if row not in dead]
            self._deliver(end_ps)
            clock.at(end_ps)
            if self._cut:
                break
        last_finish = any(offset == passes - 1 for _, offset, _ in finished)
        done_rows = {row for row, _, _ in finished}
        completed = [row for row, _, _, last in step.chunks if last and row not in done_rows]
        self._running = alive + completed
        if streaming:
            self._stream(completed)
        core = self.runtime.cluster.engines[0]
        leased = core.ranks[0].pool
        if worker.pages_used("hbm") > leased.size:
            raise IllegalTransition(f"{worker.pages_used('hbm')} pages in a pool of {leased.size}")
        end_ps = clock.now_ps()
        event = ev.StepDone(
            step.engine,
            step.epoch,
            step.q0,
            passes,
            sorted(finished),
            end_ps - start_ps,
            ended_by(step, passes, finished=last_finish, nothing_left=not alive),
        )
        self._tell(event, end_ps)
        self._record_step(step, passes, start_ps, end_ps, decoded, len(finished), leased.used)
        if self.progress is not None:
            done = int(np.count_nonzero(table.status >= Status.DONE))
            self.progress(end_ps, done, len(table))

    def _stream(self, completed: Sequence[int]) -> None:
        """Closed pages of decoding rows go to the host, whole prompts as soon as they are
        complete."""
        worker, page = self.worker, self.worker.page_tokens
        fresh = set(completed)
        upto = []
        for row in self._running:
            computed = worker.computed_tokens(row)
            upto.append(computed if row in fresh else computed - computed % page)
        worker.checkpoint(self._running, upto)

    # -- the record -------------------------------------------------------------------------------

    def _record_pass(
        self, contexts: Sequence[int], chunks: Sequence[Any], began_ps: int, end_ps: int
    ) -> None:
        gap_ps = began_ps - self._pass_end_ps if self._pass_end_ps else 0
        self._pass_end_ps = end_ps
        values = (
            len(contexts),
            sum(contexts),
            sum(size for _, _, size, _ in chunks),
            sum((start + size) ** 2 - start**2 for _, start, size, _ in chunks),
            sum(start for _, start, _, _ in chunks),
            len(contexts) + sum(last for _, _, _, last in chunks),
            end_ps - began_ps,
            gap_ps,
        )
        for name, value in zip(PASS_COLUMNS, values, strict=True):
            self.passes[name].append(value)

    def _record_step(
        self,
        step: Step,
        passes: int,
        start_ps: int,
        end_ps: int,
        decoded: int,
        num_finished: int,
        kv_pages: int,
    ) -> None:
        tokens = sum(size for _, _, size, _ in step.chunks) * passes
        lasts = sum(last for _, _, _, last in step.chunks)
        kind = record.KIND_DECODE
        if step.chunks:
            kind = record.KIND_MIXED if decoded else record.KIND_PREFILL
        first = decoded // max(passes, 1)
        values = (
            step.engine,
            step.q0,
            passes,
            start_ps,
            end_ps - start_ps,
            kind,
            first,
            tokens,
            decoded + lasts,
            num_finished,
            kv_pages,
        )
        for name, value in zip(STEP_COLUMNS, values, strict=True):
            self.steps[name].append(value)
