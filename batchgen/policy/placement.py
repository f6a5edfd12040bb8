"""Placement parts: on which engine and rank a row runs, and when rows move. Cluster level.

Work per event is proportional to the rows it touches: engines live in a lazy heap by the work that
the cluster has given them and not taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.policy.base import Part, PlacementPart
from batchgen.policy.options import MOST_TOKENS, option
from batchgen.sequence import residual_tokens

if TYPE_CHECKING:
    from batchgen.runtime.cluster.homes import Homes
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.sequence import Table

Slot = tuple[int, int]
"""(engine, rank)."""


def remaining_tokens(table: Table, row: int) -> int:
    """Output that is expected of a row still; without a prediction its budget: placement weighs
    rows that have produced nothing yet, too."""
    produced = table.v_produced[row]
    left, predicted = table.v_budget[row] - produced, table.v_predicted[row]
    if not predicted:
        return left
    return residual_tokens(left, produced, predicted)


class RoundRobin(PlacementPart):
    """Rows go around the engines in arrival order, then around the ranks of each engine.

    whole_groups: rows of one group go to the same engine, groups in turn by their number.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        whole_groups: bool = False

    def place(self, cluster: ClusterMachine, rows: Sequence[int]) -> list[tuple[int, Slot]]:
        engines = cluster.takers
        count, turn = len(engines), cluster.placed_rows
        placed = []
        if self.config.whole_groups:
            return self._place_groups(cluster, rows)
        for row in rows:
            engine = engines[turn % count]
            placed.append((row, (engine.id, (turn // count) % engine.num_ranks)))
            turn += 1
        return placed

    def _place_groups(self, cluster: ClusterMachine, rows: Sequence[int]) -> list[tuple[int, Slot]]:
        """The engine goes by the group, in it the ranks by turns; rows without a group as ever."""
        engines, groups = cluster.takers, cluster.table.v_group
        count, first = len(engines), cluster.placed_rows
        given = dict.fromkeys((engine.id for engine in engines), first // count)
        placed = []
        for turn, row in enumerate(rows, first):
            engine = engines[(groups[row] if groups[row] >= 0 else turn) % count]
            placed.append((row, (engine.id, given[engine.id] % engine.num_ranks)))
            given[engine.id] += 1
        return placed

    def choose(self, cluster: ClusterMachine, row: int, engines: Homes) -> EngineMachine:
        return engines.turn(cluster.moved_rows)


class LeastWork(PlacementPart):
    """Longest first to the slot with the least work; hungry engines take rows of others.

    Work of a row of L known tokens: L + L^2 / `quadratic_tokens` (attention against linear layers;
    the BatchGen repository balances prefill by L^2 + 16,000 L), plus `output_weight` times the
    output that is expected of it still. Without a prediction that is its whole budget: as nobody
    knows which rows are long, engines get as many rows each, and among those as many prompt tokens.
    Queues are filled in that order too: in a lockstep engine a long prompt on one rank makes all
    others wait, so long prompts should run side by side. A hungry engine takes waiting rows of the
    engine where they take longest, when those are at least `steal_min`, as long as that evens out
    what both have, waiting and running, at their speeds; when nobody waits, rows with KV that ask
    for pages, then rows on hosts; when there are none, running rows of an engine whose passes take
    more than `slow_factor` times what the cost model expects, or of one whose passes take more than
    `late_factor` times that time and again, those that gain.

    whole_groups: rows of one group that come together go to one engine, the group with the most
    work first, and there to one rank after the other; stealing may part them.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        output_weight: float = option(1.0, least=0, most=1_000_000)
        quadratic_tokens: int = option(16000, least=1, most=MOST_TOKENS)
        longest_first: bool = True
        whole_groups: bool = False
        steal: bool = True
        steal_min: int = option(2, least=1, most=MOST_TOKENS)
        slow_factor: float = option(1.5, least=1, most=1_000_000)
        late_factor: float = option(1.05, least=1, most=1_000_000)

    @property
    def steals(self) -> bool:
        return bool(self.config.steal)

    @property
    def steal_min(self) -> int:
        return int(self.config.steal_min)

    def work(self, table: Table, row: int) -> int:
        known = table.v_prompt[row] + table.v_produced[row]
        prefill = known + known * known // self.config.quadratic_tokens
        return int(prefill + self.config.output_weight * remaining_tokens(table, row))

    def place(self, cluster: ClusterMachine, rows: Sequence[int]) -> list[tuple[int, Slot]]:
        """The engine with the least work, in it the rank with the least work."""
        table = cluster.table
        works = sorted((-self.work(table, row), row) for row in rows)
        if self.config.whole_groups:
            placed = self._place_groups(cluster, works)
        else:
            slots = cluster.loads.spread([-negative for negative, _ in works])
            placed = [(row, slot) for (_, row), slot in zip(works, slots, strict=True)]
        if not self.config.longest_first:
            placed.sort()  # queues keep arrival order; only the choice of slots looks at work
        return placed

    def _place_groups(
        self, cluster: ClusterMachine, works: list[tuple[int, int]]
    ) -> list[tuple[int, Slot]]:
        """As `place`, with the works of a group in one. works: (less its work, row), sorted."""
        group_of = cluster.table.v_group
        groups: dict[int, list[tuple[int, int]]] = {}
        for negative, row in works:
            groups.setdefault(group_of[row] if group_of[row] >= 0 else -1 - row, []).append(
                (negative, row)
            )
        totals = sorted((sum(work for work, _ in one), key) for key, one in groups.items())
        slots = cluster.loads.spread([-negative for negative, _ in totals])
        placed = []
        for (_, key), (engine, first) in zip(totals, slots, strict=True):
            ranks = cluster.engines[engine].num_ranks
            for rank, (_, row) in enumerate(groups[key], first):
                placed.append((row, (engine, rank % ranks)))
        return placed

    def choose(self, cluster: ClusterMachine, row: int, engines: Homes) -> EngineMachine:
        return engines.least_loaded()

    def is_slow(self, measured_ps: int, expected_ps: int) -> bool:
        return bool(measured_ps > self.config.slow_factor * expected_ps)

    def is_late(self, measured_ps: int, expected_ps: int) -> bool:
        return bool(measured_ps > self.config.late_factor * expected_ps)
