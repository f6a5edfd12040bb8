"""Orders about single rows: to end, with success or without, or to sleep. Cancellations, rows that
the backend gives up, what bodies ask for. An order follows its row to whoever has it.

The engine that owns a row carries its order out at its next decision, and later if a copy or doubt
holds the row; where no engine needs to be asked it is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchgen.runtime.engine.copies import gave_host
from batchgen.runtime.engine.giving import forget_kv
from batchgen.runtime.engine.lane import cancel_waiting
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine, Order


class Orders:
    """See the module."""

    def __init__(self, cluster: ClusterMachine) -> None:
        self._cluster = cluster
        self._table = cluster.table
        self.ended_before: set[int] = set()  # rows that have not arrived yet
        self.later: list[tuple[int, Order]] = []  # to be given when rows have found their places

    def give(self, row: int, order: Order) -> None:
        """What is to become of a row, as soon as nothing touches it."""
        cluster, table = self._cluster, self._table
        status, owner = table.v_status[row], table.v_engine[row]
        if status >= Status.DONE:
            return
        if owner < 0:
            self._without_engine(row, order)
            return
        engine = cluster.engines[owner]
        if order[0] == "sleep":
            engine.order(row, order)
        elif status == Status.SLEEPING:
            self.end_sleeping(row, order)
        elif (
            status == Status.HOST and not engine.alive and cluster.transfers.call_back(row, engine)
        ):
            gave_host(engine, [row])
            cluster.end_early(engine, row, *order)
        elif cancel_waiting(engine, row):
            cluster.end_early(engine, row, *order)
        else:
            engine.order(row, order)
        cluster.agenda[owner] = None

    def follow(self, rows: Sequence[int], source: EngineMachine) -> None:
        """Rows have left an engine, and with them what it was to do with them."""
        if source.orders:
            for row in rows:
                order = source.take_order(row)
                if order is not None:
                    self.later.append((row, order))

    def _without_engine(self, row: int, order: Order) -> None:
        cluster = self._cluster
        what, code, why = order
        if what == "sleep":
            return  # it is told again what it wants when it has got an engine
        if row in cluster.homeless:
            cluster.homeless.remove(row)
        elif self._table.v_status[row] == Status.INIT:
            self.ended_before.add(row)
            cluster.unfinished += 1
        cluster.end_early(None, row, what, code, why)

    def end_sleeping(self, row: int, order: Order) -> None:
        """A row that waits for a timer ends; its pages, if it has any, come free."""
        cluster, owner = self._cluster, self._table.v_engine[row]
        engine = cluster.engines[owner] if owner >= 0 else None
        if engine is not None and engine.alive:
            rank = engine.ranks[self._table.v_rank[row] % len(engine.ranks)]
            if row in rank.held:
                engine.withdraw(rank, row)
                forget_kv(engine, rank, row)
            cluster.agenda[engine.id] = None
        cluster.end_early(engine, row, *order)
