"""How much work the cluster has given to every engine and rank, and taken away again.

It knows nothing of what has run or ended: a step in flight must not change what a placement sees.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine


class Least:
    """The least loaded of some engines: a lazy heap, which forgets old totals when it is asked."""

    __slots__ = ("heap", "members", "totals")

    def __init__(self, totals: list[int]) -> None:
        self.totals = totals
        self.members: dict[int, EngineMachine] = {}
        self.heap: list[tuple[int, int]] = []

    def admit(self, engines: Iterable[EngineMachine]) -> None:
        """These engines, and no others, from now on."""
        self.members = {one.id: one for one in engines}
        self._refill()

    def _refill(self) -> None:
        self.heap = [(self.totals[engine], engine) for engine in sorted(self.members)]
        heapq.heapify(self.heap)

    def changed(self, engine: int) -> None:
        """The total of an engine is another one."""
        if engine in self.members:
            heapq.heappush(self.heap, (self.totals[engine], engine))
            if len(self.heap) > 4 * len(self.members) + 64:
                self._refill()  # entries of old totals, where nobody asks for the least

    def first(self, suits: Callable[[EngineMachine], bool]) -> EngineMachine | None:
        """The least loaded that suits, the lower number at ties. What it costs grows with those
        that do not suit, not with the others."""
        heap, totals = self.heap, self.totals
        found: EngineMachine | None = None
        aside: list[tuple[int, int]] = []
        while heap and found is None:
            entry = heap[0]
            if totals[entry[1]] != entry[0] or (aside and aside[-1] == entry):
                heapq.heappop(heap)  # an old total, or the same one twice
            elif suits(self.members[entry[1]]):
                found = self.members[entry[1]]
            else:
                aside.append(heapq.heappop(heap))
        for entry in aside:
            heapq.heappush(heap, entry)
        return found


class Loads:
    """Work per (engine, rank), in the placement part's units. takers: engines that get new rows;
    decoders: engines that get rows after their prefill, where roles are apart."""

    def __init__(self, num_ranks: Sequence[int]) -> None:
        self._ranks = [[0] * count for count in num_ranks]
        self._total = [0] * len(num_ranks)
        self.takers = Least(self._total)
        self.decoders = Least(self._total)

    def of(self, engine: int) -> int:
        return self._total[engine]

    def _changed(self, engine: int) -> None:
        self.takers.changed(engine)
        self.decoders.changed(engine)

    def add(self, engine: int, rank: int, work: int) -> None:
        """`work` comes to a rank (below 0: leaves it)."""
        if not work:
            return
        ranks = self._ranks[engine]
        ranks[rank % len(ranks)] += work
        self._total[engine] += work
        self._changed(engine)

    def spread(self, works: Sequence[int]) -> list[tuple[int, int]]:
        """Slots for rows of these works, in their order: each for the engine with the least work,
        in it the rank with the least, were those before it there. It counts nothing."""
        heap, total = self.takers.heap, self._total
        planned: dict[int, list[int]] = {}  # work per rank of engines that would get some
        ours: list[tuple[int, int]] = []  # (work, engine) of them, a heap
        aside: list[tuple[int, int]] = []
        slots = []
        for work in works:
            while heap and (total[heap[0][1]] != heap[0][0] or heap[0][1] in planned):
                heapq.heappop(heap)
            if not heap or (ours and ours[0] < heap[0]):
                before, engine = heapq.heappop(ours)
                ranks = planned[engine]
            else:
                before, engine = heapq.heappop(heap)
                aside.append((before, engine))
                ranks = planned[engine] = list(self._ranks[engine])
            rank = ranks.index(min(ranks)) if len(ranks) > 1 else 0
            ranks[rank] += work
            heapq.heappush(ours, (before + work, engine))
            slots.append((engine, rank))
        for entry in aside:
            heapq.heappush(heap, entry)
        return slots

    def clear(self, engine: int) -> None:
        """The engine has lost its rows."""
        self._total[engine] = 0
        self._ranks[engine] = [0] * len(self._ranks[engine])

    def level(self, engine: int) -> None:
        """The engine comes back: as loaded as the least loaded of the others of its role, for what
        those were given in the past has mostly run."""
        group = self.decoders if engine in self.decoders.members else self.takers
        others = [self._total[other] for other in group.members if other != engine]
        missing = min(others, default=0) - self._total[engine]
        if missing > 0:
            ranks = self._ranks[engine]
            each, rest = divmod(missing, len(ranks))
            for index in range(len(ranks)):
                ranks[index] += each + (index < rest)
            self._total[engine] += missing
            self._changed(engine)
