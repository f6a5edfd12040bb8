"""Rows that come, are placed, are cancelled or end out of turn. It chooses no slot itself."""

from __future__ import annotations

from batchgen import actions as act
from batchgen import events as ev
from batchgen.actions import Action
from batchgen.memory.pool import pages_for
from batchgen.runtime.base import BODY, RuntimeBase
from batchgen.runtime.engine import Engine
from batchgen.sequence import Status


class RowEvents(RuntimeBase):
    """See the module."""

    def _arrived(self, event: ev.Arrived, out: list[Action]) -> None:
        cluster = self.cluster
        cluster.unfinished += len(event.rows)
        rows = event.rows
        if cluster.ended_before_arrival:
            rows = [row for row in rows if row not in cluster.ended_before_arrival]
        self.policy["predictor"].on_arrival(self.table, rows, cluster.states["predictor"])
        self._settle(rows, out)

    def _settle(self, rows: list[int], out: list[Action]) -> None:
        """Give rows an owner, wake the owners that stand still, cut the steps that should know."""
        cluster, table = self.cluster, self.table
        if not cluster.alive():
            cluster.homeless.extend(rows)
            return
        batches: dict[tuple[int, int], list[int]] = {}
        for row, (engine_id, rank_index) in self.policy["placement"].place(cluster, rows):
            engine = cluster.engines[engine_id]
            smallest = max(engine.ranks[rank_index].pool.size, 0)
            if pages_for(table.known_tokens(row) + 1, self.plan.page_tokens) > smallest:
                self._fail_row(row, "capacity", out)
                continue
            batches.setdefault((engine_id, rank_index), []).append(row)
        woken: list[Engine] = []
        fifo = self._fifo
        for (engine_id, rank_index), placed in batches.items():
            engine = cluster.engines[engine_id]
            rank = engine.ranks[rank_index]
            was_empty = not rank.waiting
            for row in placed:
                table.v_engine[row] = engine_id
                table.v_rank[row] = rank_index
                rank.enqueue(row)
            cluster.total_waiting += len(placed)
            cluster.queue_grew(engine)
            engine.dirty.add(rank_index)
            out.append(act.Place(placed, engine_id, rank_index))
            if engine.inflight is None:
                if engine not in woken:
                    woken.append(engine)
            elif was_empty or not fifo:
                self._cut_if_open(engine, out)
        for engine in woken:
            self._decide(engine, out)

    def _cut_if_open(self, engine: Engine, out: list[Action]) -> None:
        """End the step in flight early if the parts would be asked at the next pass boundary."""
        step = engine.inflight
        if step is not None and step.n > 1 and engine.decide_q <= engine.q:
            out.append(act.Cut(engine.id))

    def _input_closed(self, event: ev.InputClosed, out: list[Action]) -> None:
        self.cluster.input_closed = True

    def _cancelled(self, event: ev.Cancelled, out: list[Action]) -> None:
        for row in event.rows:
            self._doom(row, "cancelled", out)

    def _row_failed(self, event: ev.RowFailed, out: list[Action]) -> None:
        self._doom(event.row, event.code, out)

    def _doom(self, row: int, code: str, out: list[Action]) -> None:
        """End a row as soon as nothing touches it: now if it waits, else at the next decision."""
        table, cluster = self.table, self.cluster
        if table.v_status[row] >= Status.DONE:
            return
        engine_id = table.v_engine[row]
        if engine_id < 0:
            if row in cluster.homeless:
                cluster.homeless.remove(row)
            else:
                cluster.ended_before_arrival.add(row)
            self._end_row(row, code, out)
            return
        engine = cluster.engines[engine_id]
        rank = engine.ranks[table.v_rank[row]]
        if rank._waits_here(row) and row not in engine.ready:
            rank.waiting -= 1
            cluster.total_waiting -= 1
            rank.release_host(row)
            self._end_row(row, code, out)
            # The row may have been a blocked head: what waits behind it gets its chance.
            engine.dirty.add(rank.index)
            if engine.inflight is None:
                self._decide(engine, out)
            else:
                self._cut_if_open(engine, out)
            return
        engine.doomed[row] = code
        engine.newly_doomed.add(row)
        engine.dirty.add(rank.index)
        if engine.inflight is None:
            self._decide(engine, out)
        elif engine.inflight.n > 1:
            out.append(act.Cut(engine.id))

    def _end_row(self, row: int, code: str, out: list[Action]) -> None:
        """A row without pages ends: as its body wished, or without success."""
        if code == BODY:
            self.table.move(row, Status.DONE)
            self.cluster.unfinished -= 1
            out.append(act.Finished(row, code))
            self.bodies.finished(row)
        else:
            self._fail_row(row, code, out)

    def _end_bodies(self, out: list[Action]) -> None:
        """Rows whose body returned end, each as soon as nothing touches it."""
        while self.bodies.ended_early:
            self._doom(self.bodies.ended_early.pop(0), BODY, out)

    def _fail_row(self, row: int, code: str, out: list[Action]) -> None:
        self.table.move(row, Status.FAILED)
        self.cluster.unfinished -= 1
        out.append(act.Failed(row, code))
        self.bodies.finished(row)

    def _timer(self, event: ev.Timer, out: list[Action]) -> None:
        for engine in self.cluster.engines:
            if engine.inflight is None:
                self._decide(engine, out)

    def _plan_changed(self, event: ev.PlanChanged, out: list[Action]) -> None:
        for engine in self.cluster.engines:
            engine.token_budget = event.token_budget
            engine.max_num_seqs = event.max_num_seqs
            engine.dirty.update(range(len(engine.ranks)))
            if engine.inflight is None:
                self._decide(engine, out)
            elif engine.inflight.n > 1:
                out.append(act.Cut(engine.id))
