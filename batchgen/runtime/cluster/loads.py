"""How much work the cluster has given to every engine and rank, and taken away again.

It knows nothing of what has run or ended: a step in flight must not change what a placement sees.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


class Loads:
    """Work per (engine, rank), in the placement part's units; the least loaded engine by a lazy
    heap."""

    def __init__(self, num_ranks: Sequence[int]) -> None:
        self._ranks = [[0] * count for count in num_ranks]
        self._total = [0] * len(num_ranks)
        self._open: set[int] = set()
        self._heap: list[tuple[int, int]] = []

    def of(self, engine: int) -> int:
        return self._total[engine]

    def admit(self, engines: Iterable[int]) -> None:
        """The engines among which `spread` chooses from now on."""
        self._open = set(engines)
        self._refill()

    def _refill(self) -> None:
        self._heap = [(self._total[engine], engine) for engine in sorted(self._open)]
        heapq.heapify(self._heap)

    def add(self, engine: int, rank: int, work: int) -> None:
        """`work` comes to a rank (below 0: leaves it)."""
        if not work:
            return
        ranks = self._ranks[engine]
        ranks[rank % len(ranks)] += work
        self._total[engine] += work
        if engine in self._open:
            heapq.heappush(self._heap, (self._total[engine], engine))
            if len(self._heap) > 4 * len(self._open) + 64:
                self._refill()  # entries of old totals, where nobody asks for the least

    def spread(self, works: Sequence[int]) -> list[tuple[int, int]]:
        """Slots for rows of these works, in their order: each for the engine with the least work,
        in it the rank with the least, were those before it there. It counts nothing."""
        heap, total = self._heap, self._total
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
        """The engine comes back: as loaded as the least loaded of the others, for what those were
        given in the past has mostly run."""
        others = [self._total[other] for other in self._open if other != engine]
        missing = min(others, default=0) - self._total[engine]
        if missing > 0:
            ranks = self._ranks[engine]
            each, rest = divmod(missing, len(ranks))
            for index in range(len(ranks)):
                ranks[index] += each + (index < rest)
            self._total[engine] += missing
            if engine in self._open:
                heapq.heappush(self._heap, (self._total[engine], engine))
