"""One engine: ranks that step together under one pass counter. State and its views; no decisions.

Parts of a policy read an Engine (their `view`) and change it only through the draft.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from batchgen.memory.pool import Pool
from batchgen.plan import EngineSpec
from batchgen.sequence import Table
from batchgen.step import Step

if TYPE_CHECKING:
    from batchgen.runtime.rank import Rank


class ReadyRows(deque[int]):
    """Rows whose KV is on the host, first in first out; keeps the cluster's count of them all."""

    def __init__(self, total: list[int]) -> None:
        super().__init__()
        self._total = total

    def append(self, row: int) -> None:
        self._total[0] += 1
        super().append(row)

    def extend(self, rows: Iterable[int]) -> None:
        for row in rows:
            self.append(row)

    def pop(self) -> int:  # type: ignore[override]
        self._total[0] -= 1
        return super().pop()

    def popleft(self) -> int:
        self._total[0] -= 1
        return super().popleft()

    def remove(self, row: int) -> None:
        super().remove(row)
        self._total[0] -= 1

    def clear(self) -> None:
        self._total[0] -= len(self)
        super().clear()


class Engine:
    """State of one engine. `phase` is "decode", "prefill" or "mixed"; parts may change it."""

    __slots__ = (
        "alive",
        "announced",
        "arriving",
        "boundary",
        "decide_q",
        "dirty",
        "doomed",
        "draining",
        "epoch",
        "heir",
        "host",
        "host_leased",
        "id",
        "inbound",
        "inflight",
        "layout",
        "max_num_seqs",
        "newly_doomed",
        "node",
        "outbound",
        "phase",
        "pool_debt",
        "q",
        "ranks",
        "ready",
        "slow",
        "spec",
        "states",
        "switch_failed",
        "switching",
        "table",
        "token_budget",
        "touched",
        "turn_expected_ps",
        "turn_passes",
        "turn_ps",
        "turn_q",
    )

    def __init__(
        self,
        spec: EngineSpec,
        table: Table,
        host: Pool,
        *,
        boundary: int,
        token_budget: int,
        max_num_seqs: int,
        total_ready: list[int],
    ) -> None:
        self.id = spec.engine
        self.node = spec.node
        self.spec = spec
        self.table = table
        self.host = host
        self.boundary = boundary
        self.token_budget = token_budget
        self.max_num_seqs = max_num_seqs
        self.ranks: list[Rank] = []
        self.q = 0
        self.epoch = 0
        self.decide_q = 0  # the next pass at which parts are asked; the runtime goes on until then
        self.turn_q = 0  # the next pass at which a "mixed" engine looks beyond itself
        self.inflight: Step | None = None
        self.dirty: set[int] = set()  # ranks whose answer may have changed
        self.phase = "mixed"
        self.layout = "home"
        self.alive = True
        self.draining = False
        self.switching = ""  # the layout that is being prepared
        self.switch_failed = False
        self.host_leased = 0  # host pages leased ahead for the step in flight
        self.ready = ReadyRows(total_ready)  # suspended or prefilled rows whose KV is on the host
        self.arriving = 0  # rows whose KV is being copied to this engine's host
        self.heir: int | None = None  # the engine that will take this slow engine's rows
        self.slow = False
        self.turn_expected_ps = 0  # of the first decode pass since then, by the cost model
        self.turn_passes = self.turn_ps = 0  # decode passes since the last turn, and their time
        self.outbound: dict[int, list[int]] = {}  # copy id -> rows on their way to the host
        self.inbound: dict[int, list[tuple[int, Rank]]] = {}  # copy id -> rows being restored
        self.doomed: dict[int, str] = {}  # row -> code: leave at the next decision (cancelled, ...)
        self.newly_doomed: set[int] = set()  # since the last decision: they make the next one due
        self.pool_debt: dict[int, int] = {}  # rank -> pages to take out of its pool
        self.states: dict[str, Any] = {}
        self.announced: set[int] = set()  # the running set as the backend knows it
        self.touched: dict[int, None] = {}  # rows that joined or left since the last step

    # -- read-only sums that parts ask for --------------------------------------------------------

    @property
    def num_running(self) -> int:
        return sum(len(rank.running) for rank in self.ranks)

    @property
    def num_prefilling(self) -> int:
        return sum(len(rank.prefilling) for rank in self.ranks)

    @property
    def num_parked(self) -> int:
        return sum(len(rank.parked) for rank in self.ranks)

    @property
    def num_waiting(self) -> int:
        return sum(rank.waiting for rank in self.ranks)

    @property
    def num_moving(self) -> int:
        """Rows in a copy."""
        return sum(map(len, self.outbound.values())) + sum(map(len, self.inbound.values()))

    @property
    def num_unfinished(self) -> int:
        """Every row that this engine owns and has not finished."""
        return (
            self.num_running
            + self.num_prefilling
            + self.num_parked
            + self.num_waiting
            + len(self.ready)
            + self.num_moving
            + self.arriving
        )

    @property
    def free_fraction(self) -> float:
        """Free HBM pages over all pages of the engine."""
        size = sum(rank.pool.size for rank in self.ranks)
        return sum(rank.pool.free for rank in self.ranks) / size if size else 0.0
