"""One engine as the plain backend sees it: its composition, the pass in flight, its troubles.

It counts for itself what a pass costs; nothing is read of the runtime's books but columns that are
fixed while a pass runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from batchgen.check.toy import ToyCost
from batchgen.sequence import Table
from batchgen.step import Composition, Pass, Step

NORMAL = 1000
"""The speed of a healthy device, in thousandths of the time that a pass takes."""


@dataclass
class Device:
    """One engine as the walker sees it."""

    composition: Composition
    cost: ToyCost
    speed: int = NORMAL
    troubles: dict[int, int] = field(default_factory=dict)  # gpu -> factor
    step: Step | None = None  # launched, not yet reported
    flying: Pass | None = None  # the pass in flight, with its step
    flying_step: Step | None = None
    flying_q: int = 0
    q: int = 0  # the next pass
    life: int = 0
    busy_ps: int = 0  # of passes that ended since the last report
    began_ps: int = 0
    pending: list[tuple[int, int, str]] = field(default_factory=list)
    waits: bool = False  # its step begins when all that happens at this instant has been told
    dead: dict[int, int] = field(default_factory=dict)  # dead row -> tokens its KV would have
    free_ps: dict[str, int] = field(default_factory=dict)  # links: "up", "down", "out", "in"
    late_ps: int = 0  # what the pass in flight waits for the host link
    lost: set[int] = field(default_factory=set)

    def take(self) -> list[tuple[int, int, str]]:
        """Outcomes that were not reported, in order of rows."""
        pending, self.pending = self.pending, []
        return sorted(pending)

    def busy(self) -> int:
        """Time in passes since this was asked."""
        busy, self.busy_ps = self.busy_ps, 0
        return busy

    def slow(self, gpu: int, factor: int, num_gpus: int) -> None:
        """One GPU takes `factor` thousandths of its time; all wait for the slowest."""
        self.troubles[gpu] = factor
        if factor == NORMAL:
            del self.troubles[gpu]
        healthy = [NORMAL] if len(self.troubles) < num_gpus else []
        self.speed = max([*self.troubles.values(), *healthy])

    def forget(self) -> None:
        """Everything in flight is lost."""
        self.life += 1
        self.step = self.flying = self.flying_step = None
        self.busy_ps = 0
        self.waits = False
        self.composition.clear()
        self.dead.clear()
        self.free_ps.clear()

    def queue(self, link: str, now: int, time: int) -> int:
        """Links serve in the order in which they are asked: when this ends."""
        end = self.free_ps[link] = max(now, self.free_ps.get(link, 0)) + time
        return end

    def begin_ps(self, one: Pass, table: Table, computed: list[int], now: int) -> int:
        """A pass begins: when it ends, with what it moves over the host link."""
        loads = self.loads(one, table, computed)
        end = late = now + self.cost.time_ps(loads) * self.speed // NORMAL
        up = self.cost.stream * self.speed // NORMAL
        down = self.cost.CHECKPOINT * max(load[6] for load in loads) * self.speed // NORMAL
        for link, time in (("up", up), ("down", down)):
            if time:
                late = max(late, self.queue(link, now, time))
        self.late_ps = late - end
        return late

    def loads(self, one: Pass, table: Table, computed: list[int]) -> list[list[int]]:
        """What a pass holds, by rank; `computed`: KV tokens per row."""
        step = self.step
        assert step is not None
        stream = step.checkpoint == "host"
        loads = [[0] * 7 for _ in range(self.cost.num_ranks)]
        longest: dict[int, int] = {}
        for row, _, size, _ in one.chunks:
            longest[table.v_rank[row]] = max(longest.get(table.v_rank[row], 0), size)
        for row in one.decodes:
            load = loads[table.v_rank[row]]
            load[0] += 1
            load[1] += self._context(row, computed) + 1
            load[5] += 1
            load[6] += stream
        for row, start, size, last in one.chunks:
            rank = table.v_rank[row]
            load = loads[rank]
            if step.until == "all":
                size = longest[rank]
            load[2] += size
            load[3] += (start + size) ** 2 - start**2
            load[4] += start
            load[5] += last
            load[6] += size * stream
        return loads

    def _context(self, row: int, computed: list[int]) -> int:
        if row in self.dead:
            self.dead[row] += 1
            return self.dead[row] - 1
        return computed[row]
