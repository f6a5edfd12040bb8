"""The end of a step: what its passes did to the books. It decides nothing."""

from __future__ import annotations

from batchgen import actions as act
from batchgen import events as ev
from batchgen.actions import Action
from batchgen.errors import IllegalTransition
from batchgen.runtime.base import BODY, RuntimeBase
from batchgen.runtime.engine import Engine
from batchgen.runtime.rank import Rank
from batchgen.sequence import Status


class StepEvents(RuntimeBase):
    """See the module."""

    def _slot_free(self, event: ev.SlotFree, out: list[Action]) -> None:
        """Depth 1: a slot is free when its step is done, so there is nothing to do before."""

    def _return_host_lease(self, engine: Engine, used: int) -> None:
        if engine.host_leased or used:
            engine.host.lease(used - engine.host_leased)
            engine.host_leased = 0

    def _step_done(self, event: ev.StepDone, out: list[Action]) -> None:
        engine = self.cluster.engines[event.engine]
        step = engine.inflight
        if step is None or event.epoch != engine.epoch or event.q0 != step.q0:
            return  # a step of an epoch that is over
        if not 0 <= event.passes <= step.n:
            raise IllegalTransition(f"step {engine.id}:{step.q0} ran {event.passes} of {step.n}")
        engine.inflight = None
        q0, passes = event.q0, event.passes
        q1 = q0 + passes
        engine.q = q1
        table, dirty = self.table, engine.dirty
        if not step.chunks:
            engine.turn_passes += passes
            engine.turn_ps += event.duration_ps
        host_used = 0
        for rank in engine.ranks:
            pages = rank.advance(q0, passes)
            if rank.streaming:
                host_used += pages
        self._return_host_lease(engine, host_used)
        if step.chunks and passes:
            for row, start, size, last in step.chunks:
                rank = engine.ranks[table.v_rank[row]]
                dirty.add(rank.index)
                if last:
                    rank.complete_prompt(row, q1)
                    engine.announced.add(row)
                    if rank.streaming and table.v_host_pages[row]:
                        table.v_host_valid[row] = start + size
                    self.bodies.prompt_done(row)
                else:
                    table.v_computed[row] = start + size * passes
        for row, offset, reason in event.finished:
            rank = engine.ranks[table.v_rank[row]]
            if row not in rank.running:
                raise IllegalTransition(f"{table.story(row)} finished but was not running")
            produced = table.v_offset[row] + q0 + offset + 1 - table.v_prompt[row] + 1
            rank.leave(row, q1)
            table.v_produced[row] = produced
            table.v_computed[row] = table.v_prompt[row] + produced - 1
            self._finish(engine, rank, row, reason, out)
            dirty.add(rank.index)
        if self.bodies.ended_early:
            for row in self.bodies.ended_early:
                if table.v_status[row] < Status.DONE:
                    engine.doomed.setdefault(row, BODY)
                    dirty.add(table.v_rank[row])
            self.bodies.ended_early.clear()
            engine.decide_q = min(engine.decide_q, q1)
        if event.ended_by != "failed":  # else the loss of the device follows
            self._decide(engine, out)

    def _finish(self, engine: Engine, rank: Rank, row: int, reason: str, out: list[Action]) -> None:
        rank.release_hbm(row)
        rank.release_host(row)
        engine.announced.discard(row)
        self.table.move(row, Status.DONE)
        self.cluster.unfinished -= 1
        if engine.doomed:
            engine.doomed.pop(row, None)
            engine.newly_doomed.discard(row)
        out.append(act.Finished(row, reason))
        self.bodies.finished(row)
        if self._learns:
            self.policy["predictor"].on_completion(
                self.table, row, self.cluster.states["predictor"]
            )
