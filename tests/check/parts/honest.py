"""Small parts that do what they declare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchgen.policy.base import AdmissionPart, MemoryPart, OrderPart, Part, PhasePart
from batchgen.policy.placement import RoundRobin
from batchgen.policy.predictor import MeanSeen
from batchgen.sequence import Status


class EvenPagesEachPass(AdmissionPart):
    """No order in what it accepts, and it says so."""

    changes = "pass"

    def room(self, engine: Any, rank: Any, pages: int, free: int, resident: int) -> bool:
        return pages <= free and free % 2 == 0


class KeyByEndsSaidSo(OrderPart):
    changes = "finish"
    keyed = True

    def key(self, table: Any, row: int) -> int:
        done = sum(status == Status.DONE for status in table.v_status)
        return row * (-1 if done % 2 else 1)


class ClassesOfPrompts(OrderPart):
    """What it needs of its options is worked out when it is made."""

    changes = "never"
    keyed = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        classes: int = 4
        longest: int = 64

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.width = max(1, self.config.longest // self.config.classes)

    def key(self, table: Any, row: int) -> int:
        return int(table.v_prompt[row]) // self.width


class MostPages(MemoryPart):
    newest = False

    def rank_victim(self, table: Any, row: int) -> int:
        return int(table.v_offset[row])


class PrefillsWhenHalfIsFree(PhasePart):
    phases = True

    def starts_prefill(self, engine: Any) -> bool:
        return engine.num_resident == 0 or engine.free_fraction > 0.5


class TakesWhenHalfIsFree(PhasePart):
    pauses = True

    def takes(self, engine: Any, rank: Any) -> bool:
        return rank.free > rank.size // 2 or not (rank.running or rank.inbound)


class FewestGiven(RoundRobin):
    """By what the cluster keeps about work that it has given."""

    def work(self, table: Any, row: int) -> int:
        return 1

    def place(self, cluster: Any, rows: Sequence[int]) -> Any:
        return list(zip(rows, cluster.loads.spread([1] * len(rows)), strict=True))


class MeanOfAll(MeanSeen):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        alpha: float = 0.5
        initial_tokens: int = 20
