"""The runtime: a synchronous state machine, `on(event, now) -> actions`, without I/O or clock.

Engine level: finish the books of a step, ask the parts, emit the next step. Cluster level:
arrivals, placement, stealing, tail, loss. Decisions belong to the parts; the runtime owns their
order, the page books and the liveness of the whole. One file per concern: rows, devices, copies,
landing (the end of a step), stepping (the next step), rebalance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchgen import events as ev
from batchgen.actions import Action
from batchgen.coroutine import BodyFactory
from batchgen.plan import Plan
from batchgen.policy.presets import Policy
from batchgen.runtime.base import MAX_PASSES
from batchgen.runtime.cluster import Advisor
from batchgen.runtime.copies import CopyEvents
from batchgen.runtime.devices import DeviceEvents
from batchgen.runtime.landing import StepEvents
from batchgen.runtime.rank import PageKeys
from batchgen.runtime.rebalance import Rebalance
from batchgen.runtime.rows import RowEvents
from batchgen.runtime.stepping import Stepping
from batchgen.sequence import Table

__all__ = ["MAX_PASSES", "Runtime"]


class Runtime(RowEvents, DeviceEvents, CopyEvents, StepEvents, Stepping, Rebalance):
    """One policy at work on a plan. Feed it every event in order; carry out every action.

    reference: one pass per step and every rank asked at every decision point; the slow truth that
    coalesced stepping is tested against.
    page_keys: prefix keys of a row's full prompt pages; None switches the prefix index off.
    advisor: cost questions of the tail part. body_factory: bodies of one's own.
    """

    def __init__(
        self,
        table: Table,
        plan: Plan,
        policy: Policy,
        *,
        reference: bool = False,
        page_keys: PageKeys | None = None,
        advisor: Advisor | None = None,
        body_factory: BodyFactory | None = None,
    ) -> None:
        super().__init__(
            table,
            plan,
            policy,
            reference=reference,
            page_keys=page_keys,
            advisor=advisor,
            body_factory=body_factory,
        )
        self._handlers: dict[type, Callable[[Any, list[Action]], None]] = {
            ev.StepDone: self._step_done,
            ev.Arrived: self._arrived,
            ev.InputClosed: self._input_closed,
            ev.Cancelled: self._cancelled,
            ev.SlotFree: self._slot_free,
            ev.CopiesDone: self._copies_done,
            ev.CopiesFailed: self._copies_failed,
            ev.LayoutReady: self._layout_ready,
            ev.LayoutFailed: self._layout_failed,
            ev.DeviceNotice: self._device_notice,
            ev.DeviceLost: self._device_lost,
            ev.DeviceBack: self._device_back,
            ev.RowFailed: self._row_failed,
            ev.PoolShort: self._pool_short,
            ev.Timer: self._timer,
            ev.PlanChanged: self._plan_changed,
        }

    def on(self, event: ev.Event, now: int) -> list[Action]:
        """Account for one event at time `now` (ps) and return what to do, in order.

        Raises IllegalTransition when the event contradicts what was asked for.
        """
        out: list[Action] = []
        self._handlers[type(event)](event, out)
        if self.bodies.ended_early:
            self._end_bodies(out)
        return out

    @property
    def unfinished(self) -> int:
        """Rows that arrived and have not ended."""
        return self.cluster.unfinished
