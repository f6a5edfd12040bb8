"""The cluster level's state and the questions that placement and tail parts may ask. No
decisions."""

from __future__ import annotations

import heapq
from typing import Any, Protocol

from batchgen.memory.pool import Pool
from batchgen.runtime.engine import Engine
from batchgen.sequence import Table


class Advisor(Protocol):
    """Cost questions that decisions need; injected, pure, the same for both backends."""

    def partition_ps(
        self, engine: int, contexts: list[int], current: str
    ) -> tuple[str, int, int, int]:
        """(best layout, pass time now, pass time then, cost of the switch), times in ps."""
        ...

    def decode_ps(self, engine: int, decodes: int, context: int) -> int:
        """Expected time of a decode pass of so many rows that read so many KV tokens, in ps."""
        ...


class Cluster:
    """Engines, host pools and global counts."""

    __slots__ = (
        "_donors",
        "advisor",
        "assigned_work",
        "ended_before_arrival",
        "engines",
        "homeless",
        "hosts",
        "input_closed",
        "migrating",
        "placed_rows",
        "slow",
        "states",
        "table",
        "total_ready",
        "total_waiting",
        "unfinished",
    )

    def __init__(
        self,
        table: Table,
        engines: list[Engine],
        hosts: list[Pool],
        advisor: Advisor | None,
        total_ready: list[int],
    ) -> None:
        self.table = table
        self.engines = engines
        self.hosts = hosts
        self.advisor = advisor
        self.assigned_work: dict[tuple[int, int], int] = {}
        self.placed_rows = 0
        self.total_waiting = 0  # rows in lanes of all engines
        self.total_ready = total_ready  # one count: ready rows of all engines
        self.slow: set[int] = set()  # engines whose passes take far longer than expected
        self.migrating: dict[int, tuple[list[int], Engine, Engine]] = {}  # copy -> rows, from, to
        self.unfinished = 0  # rows that arrived and did not end
        self.homeless: list[int] = []  # rows that wait for any engine to come alive
        self.ended_before_arrival: set[int] = set()  # cancelled rows that are still to arrive
        self.input_closed = False
        self.states: dict[str, Any] = {}
        self._donors: list[tuple[int, int]] = []

    def alive(self) -> list[Engine]:
        """Engines that take rows."""
        return [engine for engine in self.engines if engine.alive and not engine.draining]

    def queue_grew(self, engine: Engine) -> None:
        """Keep the donor heap an over-estimate: every growth of a queue is recorded."""
        heapq.heappush(self._donors, (-engine.num_waiting, engine.id))

    def longest_queue(self, hungry: Engine) -> Engine | None:
        """The engine with most waiting rows, other than `hungry`; None when nobody waits."""
        donors = self._donors
        while donors:
            estimate, engine_id = donors[0]
            engine = self.engines[engine_id]
            waiting = engine.num_waiting if engine.alive else 0
            if waiting == -estimate and engine is not hungry:
                return engine if waiting else None
            if engine is hungry and waiting == -estimate:
                # The hungry engine itself heads the heap: nobody has more than it.
                return None
            heapq.heapreplace(donors, (-waiting, engine_id)) if waiting else heapq.heappop(donors)
        return None
