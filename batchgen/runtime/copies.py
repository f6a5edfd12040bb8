"""Batches of KV copies: asked for, done, failed. Which rows move is decided elsewhere."""

from __future__ import annotations

from batchgen import actions as act
from batchgen import events as ev
from batchgen.actions import Action
from batchgen.runtime.base import RuntimeBase
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine
from batchgen.sequence import Status


class CopyEvents(RuntimeBase):
    """See the module."""

    def _copy(self, purpose: str, engine: Engine) -> int:
        copy_id = self._next_copy
        self._next_copy += 1
        self._copies[copy_id] = (purpose, engine)
        return copy_id

    def _emit_copies(self, engine: Engine, draft: Draft, out: list[Action]) -> None:
        if draft.suspended:
            copy_id = self._copy("checkpoint", engine)
            rows = [row for row, _ in draft.suspended]
            engine.outbound[copy_id] = rows
            tokens = [tokens for _, tokens in draft.suspended]
            out.append(
                act.Copy(copy_id, rows, tokens, engine.id, engine.id, "hbm", "host", "checkpoint")
            )
        if draft.restored:
            copy_id = self._copy("restore", engine)
            engine.inbound[copy_id] = list(draft.restored)
            rows = [row for row, _ in draft.restored]
            tokens = [self.table.v_computed[row] for row in rows]
            out.append(
                act.Copy(copy_id, rows, tokens, engine.id, engine.id, "host", "hbm", "restore")
            )

    def _copies_done(self, event: ev.CopiesDone, out: list[Action]) -> None:
        known = self._copies.pop(event.copy_id, None)
        if known is None:
            return  # the engine was lost meanwhile
        purpose, engine = known
        table = self.table
        if purpose == "migrate":
            self._migrated(event.copy_id, True, out)
            return
        if purpose == "checkpoint":
            rows = engine.outbound.pop(event.copy_id)
            for row in rows:
                rank = engine.ranks[table.v_rank[row]]
                table.v_host_valid[row] = table.v_computed[row]
                rank.release_hbm(row)
                engine.ready.append(row)
                engine.dirty.add(rank.index)
            out.append(act.Release(rows, engine.id, "hbm"))
            if engine.heir is not None and not engine.outbound:
                self._hand_over(engine, out)
        else:
            for row, rank in engine.inbound.pop(event.copy_id):
                rank.parked[row] = None
                engine.dirty.add(rank.index)
                self.bodies.resumed(row)
        if engine.inflight is None:
            self._decide(engine, out)

    def _copies_failed(self, event: ev.CopiesFailed, out: list[Action]) -> None:
        """Nothing of the batch arrived: the rows are prefilled again."""
        known = self._copies.pop(event.copy_id, None)
        if known is None:
            return
        purpose, engine = known
        if purpose == "migrate":
            self._migrated(event.copy_id, False, out)
            return
        if purpose == "checkpoint":
            pairs = [
                (row, engine.ranks[self.table.v_rank[row]])
                for row in engine.outbound.pop(event.copy_id)
            ]
        else:
            pairs = engine.inbound.pop(event.copy_id)
        for row, rank in pairs:
            rank.release_hbm(row)
            rank.release_host(row)
            rank.forget_kv(row)
            self.table.move(row, Status.INACTIVE)
            self.table.v_preemptions[row] += 1
            rank.enqueue(row, front=True)
            self.cluster.total_waiting += 1
            engine.dirty.add(rank.index)
            out.append(act.Release([row], engine.id, "hbm"))
            self.bodies.lost(row)
        if engine.inflight is None:
            self._decide(engine, out)
