"""Placement parts: on which engine and rank a row runs, and when waiting rows move. Cluster level.

Work per event is proportional to the rows it touches: slots live in a heap, donors in a lazy heap
whose entries only over-estimate, since queues of a closed batch only shrink.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.policy.base import Part

if TYPE_CHECKING:
    from batchgen.runtime.cluster import Cluster
    from batchgen.runtime.engine import Engine
    from batchgen.sequence import Table

Slot = tuple[int, int]
"""(engine, rank)."""


class PlacementPart(Part):
    """Base: choose slots for arrived or homeless rows; name a donor for a hungry engine."""

    def place(self, view: Cluster, rows: Sequence[int]) -> list[tuple[int, Slot]]:
        """(row, slot) for every row, over the alive engines of the view."""
        raise NotImplementedError

    def steal(self, view: Cluster, hungry: Engine) -> tuple[Engine, int] | None:
        """A donor engine and how many of its waiting rows move to `hungry`; None: nobody."""
        return None

    def migrate(self, view: Cluster, hungry: Engine) -> tuple[Engine, int] | None:
        """A donor and how many of its ready rows (KV on its host) move; None: nobody."""
        return None

    def rescue(self, view: Cluster, hungry: Engine) -> Engine | None:
        """A slow engine whose running rows `hungry` should take over; None: nobody."""
        return None

    def is_slow(self, measured_ps: int, expected_ps: int) -> bool:
        """Whether decode passes of `measured_ps` on average are too slow for `expected_ps`."""
        return False


class RoundRobin(PlacementPart):
    """Rows go around the engines in arrival order, then around the ranks of each engine."""

    def place(self, view: Cluster, rows: Sequence[int]) -> list[tuple[int, Slot]]:
        engines = view.alive()
        count = len(engines)
        placed = []
        for row in rows:
            turn = view.placed_rows
            view.placed_rows += 1
            engine = engines[turn % count]
            placed.append((row, (engine.id, (turn // count) % len(engine.ranks))))
        return placed


class LeastWork(PlacementPart):
    """Longest first to the slot with the least expected work; idle engines steal waiting rows.

    Work of a row of L known tokens: L + L^2 / `quadratic_tokens` (attention against linear layers;
    the BatchGen repository balances prefill by L^2 + 16,000 L), plus `output_weight` times its
    predicted output. Queues are filled in that order too: in a lockstep engine a long prompt on one
    rank makes all others wait, so long prompts should run side by side. A hungry engine takes half
    of the difference from the engine with most waiting rows, when that is at least `steal_min`
    rows; when nobody waits, ready rows on hosts; when none are ready, the running rows of an engine
    whose decode passes take more than `slow_factor` times what the cost model expects.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        output_weight: float = 1.0
        quadratic_tokens: int = 16000
        longest_first: bool = True
        steal: bool = True
        steal_min: int = 2
        slow_factor: float = 1.5

    def work(self, table: Table, row: int) -> int:
        known = table.v_prompt[row] + table.v_produced[row]
        prefill = known + known * known // self.config.quadratic_tokens
        return int(prefill + self.config.output_weight * table.v_predicted[row])

    def place(self, view: Cluster, rows: Sequence[int]) -> list[tuple[int, Slot]]:
        """The engine with the least work, in it the rank with the least work."""
        table = view.table
        engines: list[tuple[int, int]] = []
        ranks: dict[int, list[tuple[int, int]]] = {}
        alive = view.alive()
        fast = [engine for engine in alive if not engine.slow] or alive
        for engine in fast:
            loads = [
                (view.assigned_work.get((engine.id, rank.index), 0), rank.index)
                for rank in engine.ranks
            ]
            heapq.heapify(loads)
            ranks[engine.id] = loads
            engines.append((sum(load for load, _ in loads), engine.id))
        heapq.heapify(engines)
        placed = []
        for work, row in sorted((-self.work(table, row), row) for row in rows):
            total, engine_id = engines[0]
            heapq.heapreplace(engines, (total - work, engine_id))
            load, rank_index = ranks[engine_id][0]
            heapq.heapreplace(ranks[engine_id], (load - work, rank_index))
            view.assigned_work[engine_id, rank_index] = load - work
            placed.append((row, (engine_id, rank_index)))
        if not self.config.longest_first:
            placed.sort()  # queues keep arrival order; only the choice of slots looks at work
        return placed

    def steal(self, view: Cluster, hungry: Engine) -> tuple[Engine, int] | None:
        if not self.config.steal:
            return None
        donor = view.longest_queue(hungry)
        if donor is None:
            return None
        # What waits there against all that is left here: an engine that waits for one long prompt
        # has not got too many rows. Rows that run there do not count, since finishes inside its
        # step in flight are not known yet.
        gap = donor.num_waiting - hungry.num_unfinished
        if gap < max(self.config.steal_min, 2):
            return None
        return donor, gap // 2

    def migrate(self, view: Cluster, hungry: Engine) -> tuple[Engine, int] | None:
        if not (self.config.steal and view.total_ready[0]):
            return None
        donor = max(
            (engine for engine in view.engines if engine.ready and engine is not hungry),
            key=lambda engine: (len(engine.ready), -engine.id),
            default=None,
        )
        if donor is None:
            return None
        gap = len(donor.ready) - hungry.num_unfinished
        if gap < max(self.config.steal_min, 2):
            return None
        return donor, gap // 2

    def rescue(self, view: Cluster, hungry: Engine) -> Engine | None:
        if not self.config.steal:
            return None
        candidates = [view.engines[index] for index in sorted(view.slow)]
        return next(
            (
                engine
                for engine in candidates
                if engine.alive and engine.heir is None and engine.num_running
            ),
            None,
        )

    def is_slow(self, measured_ps: int, expected_ps: int) -> bool:
        return bool(measured_ps > self.config.slow_factor * expected_ps)
