"""The runtime: a synchronous state machine, `on(event, now) -> actions`, without I/O or clock.

It only dispatches. Engines keep their own books (`batchgen.runtime.engine`), what lies between them
is the cluster's (`batchgen.runtime.cluster`), choices are the policy's parts'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchgen import events as ev
from batchgen.actions import Action
from batchgen.bodies import Bodies
from batchgen.coroutine import BodyFactory, MakeView, SequenceView
from batchgen.errors import IllegalTransition
from batchgen.plan import Plan
from batchgen.policy.compiled import Compiled
from batchgen.policy.presets import Policy
from batchgen.runtime.advisor import Advisor
from batchgen.runtime.cluster.machine import ClusterMachine
from batchgen.runtime.engine.decide import decide
from batchgen.runtime.engine.landing import drained, landed
from batchgen.runtime.engine.leaving import layout_failed, layout_ready
from batchgen.runtime.engine.rank import PageKeys
from batchgen.sequence import Table

MAX_PASSES = 4096
"""Longest step; any smaller limit gives the same decisions, so this only bounds array sizes."""


class Runtime:
    """One policy at work on a plan. Feed it every event in order; carry out every action, in order.

    reference: one pass per step; the slow truth that coalesced stepping is tested against.
    max_passes: another limit of a step's length. page_keys: prefix keys of a row's full prompt
    pages; None switches the prefix index off. advisor: cost questions of tail and pace. bodies:
    bodies of one's own, or what resumes
    them; `view` makes what they see of their row.
    """

    def __init__(
        self,
        table: Table,
        plan: Plan,
        policy: Policy,
        *,
        reference: bool = False,
        max_passes: int = MAX_PASSES,
        page_keys: PageKeys | None = None,
        advisor: Advisor | None = None,
        bodies: BodyFactory | Bodies | None = None,
        view: MakeView = SequenceView,
    ) -> None:
        self.table, self.plan, self.policy = table, plan, policy
        self.reference, self.page_keys = reference, page_keys
        if bodies is not None and not isinstance(bodies, Bodies):
            bodies = Bodies(table, bodies, view)
        self.bodies = bodies
        self.cluster = ClusterMachine(
            table,
            plan,
            Compiled(policy),
            page_keys=page_keys,
            advisor=advisor,
            bodies=self.bodies,
            max_passes=1 if reference else max_passes,
            decide=decide,
        )
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.Landed: self._landed,
            ev.Drained: self._drained,
            ev.Arrived: lambda event: self.cluster.arrive(event.rows),
            ev.InputClosed: self._input_closed,
            ev.Cancelled: self._cancelled,
            ev.CopiesDone: self._copies_done,
            ev.CopiesFailed: self._copies_failed,
            ev.LayoutReady: self._layout,
            ev.LayoutFailed: self._layout,
            ev.DeviceNotice: lambda event: self.cluster.members.notice(event),
            ev.DeviceLost: self._device_lost,
            ev.DeviceBack: lambda event: self.cluster.members.back(event),
            ev.RowFailed: lambda event: self._end(event.row, event.code),
            ev.PoolShort: self._pool_short,
            ev.Timer: lambda event: self.cluster.timer_rang(event.timer_id),
            ev.PlanChanged: self._plan_changed,
        }

    def on(self, event: ev.Event, now: int) -> list[Action]:
        """Account for one event at time `now` (ps) and return what to do, in order.

        Raises IllegalTransition when the event contradicts what was asked for.
        """
        cluster = self.cluster
        out: list[Action] = []
        cluster.out = out
        cluster.now = now
        self._handlers[type(event)](event)
        cluster.finish_agenda()
        return out

    # -- what backends ask ------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """Rows that arrived and have not ended."""
        return self.cluster.unfinished

    @property
    def homeless(self) -> list[int]:
        """Rows that wait for any engine to come alive, with KV on a host or without."""
        hosted = [row for one in self.cluster.engines if not one.alive for row in one.ready]
        return [*self.cluster.homeless, *hosted]

    def alive(self, engine: int) -> bool:
        return self.cluster.engines[engine].alive

    def kv_pages(self, engine: int) -> int:
        """The most HBM pages that were leased in the engine's last landed step: when it began, or
        at the end of one of its passes, before rows that ended in it gave theirs back. Pages that
        a copy frees while the step runs count as of its begin."""
        return self.cluster.engines[engine].peak_pages

    def decode_clock(self, engine: int) -> int:
        """Decode passes of the engine so far: what lazy columns of the table are relative to."""
        return self.cluster.engines[engine].k

    def host_pages(self, engine: int) -> int:
        """Pages of the engine's host share in use."""
        one = self.cluster.engines[engine]
        return one.host_used + one.stream_used

    # -- events -----------------------------------------------------------------------------------

    def _landed(self, event: ev.Landed) -> None:
        cluster = self.cluster
        engine = cluster.engines[event.engine]
        out = cluster.out
        landed(engine, event, out)
        decide(engine, out)

    def _drained(self, event: ev.Drained) -> None:
        engine = self.cluster.engines[event.engine]
        drained(engine, event, self.cluster.out)
        decide(engine, self.cluster.out)

    def _input_closed(self, event: ev.InputClosed) -> None:
        self.cluster.input_closed = True

    def _cancelled(self, event: ev.Cancelled) -> None:
        for row in event.rows:
            self._end(row, "cancelled")

    def _end(self, row: int, code: str) -> None:
        self.cluster.orders.give(row, ("fail", code, ""))

    def _copies_done(self, event: ev.CopiesDone) -> None:
        self.cluster.transfers.done(event.copy_id, self.cluster.out)

    def _copies_failed(self, event: ev.CopiesFailed) -> None:
        self.cluster.transfers.failed(event.copy_id, self.cluster.out)

    def _layout(self, event: ev.LayoutReady | ev.LayoutFailed) -> None:
        engine = self.cluster.engines[event.engine]
        if engine.switching is None or event.epoch != engine.epoch + 1:
            return
        if isinstance(event, ev.LayoutReady):
            layout_ready(engine)
        else:
            layout_failed(engine)
        engine.hurry()
        self.cluster.agenda[engine.id] = None

    def _device_lost(self, event: ev.DeviceLost) -> None:
        self.cluster.members.lost(event, self.cluster.out)

    def _pool_short(self, event: ev.PoolShort) -> None:
        engine = self.cluster.engines[event.engine]
        if not 0 <= event.rank < engine.home_ranks:
            raise IllegalTransition(f"engine {engine.id} has no rank {event.rank}")
        engine.owe(event.rank, event.pages)
        self.cluster.agenda[engine.id] = None

    def _plan_changed(self, event: ev.PlanChanged) -> None:
        for engine in self.cluster.engines:
            engine.limit(event.token_budget, event.max_num_seqs)
            engine.hurry()
            self.cluster.agenda[engine.id] = None
