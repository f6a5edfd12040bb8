"""Small parts, each of which does something else than it declares, or than any part may."""

from __future__ import annotations

import random
import time
from typing import Any, ClassVar

from batchgen.policy.base import (
    AdmissionPart,
    MemoryPart,
    OrderPart,
    PhasePart,
    PlacementPart,
    PredictorPart,
)
from batchgen.policy.placement import LeastWork, RoundRobin
from batchgen.policy.predictor import MeanSeen
from batchgen.sequence import Status

SEEN: dict[int, int] = {}


def num_done(table: Any) -> int:
    return sum(status == Status.DONE for status in table.v_status)


# -- declarations that do not hold ----------------------------------------------------------------


class EvenPages(AdmissionPart):
    """A refused row is accepted when more pages are taken."""

    changes = "never"

    def room(self, engine: Any, rank: Any, pages: int, free: int, resident: int) -> bool:
        return pages <= free and free % 2 == 0


class KeyByEnds(OrderPart):
    """Keys of rows that come late depend on how many have ended."""

    changes = "never"
    keyed = True

    def key(self, table: Any, row: int) -> int:
        return row * (-1 if num_done(table) % 2 else 1)


class PlacesByEnds(PlacementPart):
    """Where a row goes depends on how many have ended."""

    def place(self, cluster: Any, rows: Any) -> Any:
        engines = cluster.takers
        first = num_done(cluster.table)
        return [(row, (engines[(first + row) % len(engines)].id, 0)) for row in rows]

    def choose(self, cluster: Any, row: int, engines: Any) -> Any:
        return engines[0]


class PlacesByClock(RoundRobin):
    """Reads a clock of the engines, which a launched step moves when it is reported."""

    def place(self, cluster: Any, rows: Any) -> Any:
        best = min(cluster.takers, key=lambda engine: (engine.q, engine.id))
        return [(row, (best.id, 0)) for row in rows]


class LearnsInSecret(MeanSeen):
    """Predictions change when rows end, and it declares that they never do."""

    changes = "never"


class KeyForNobody(OrderPart):
    """It has a key and does not say so."""

    changes = "never"

    def key(self, table: Any, row: int) -> int:
        return -row


class SometimesChanges(OrderPart):
    changes = "sometimes"


class StreamsToNowhere(MemoryPart):
    """It needs a host and does not say so."""

    streams = True


# -- what no part may do --------------------------------------------------------------------------


class WritesTable(OrderPart):
    changes = "never"
    keyed = True

    def key(self, table: Any, row: int) -> int:
        table.predicted[row] += 1
        return 0


class WritesEngine(AdmissionPart):
    changes = "never"

    def room(self, engine: Any, rank: Any, pages: int, free: int, resident: int) -> bool:
        engine.max_num_seqs = max(1, engine.max_num_seqs - 1)
        return pages <= free


class WritesRank(AdmissionPart):
    changes = "never"

    def room(self, engine: Any, rank: Any, pages: int, free: int, resident: int) -> bool:
        rank.gave = True
        return pages <= free


class WritesCluster(RoundRobin):
    def place(self, cluster: Any, rows: Any) -> Any:
        cluster.placed_rows += 1
        return super().place(cluster, rows)


class SortsWhatItIsGiven(RoundRobin):
    def place(self, cluster: Any, rows: Any) -> Any:
        rows.sort(key=lambda row: -row)
        return super().place(cluster, rows)


class CountsCalls(OrderPart):
    """Round robin by a counter in itself."""

    changes = "never"
    keyed = True

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.calls = 0

    def key(self, table: Any, row: int) -> int:
        self.calls += 1
        return self.calls % 3


class CountsInItsClass(OrderPart):
    changes = "never"
    keyed = True
    calls: ClassVar[int] = 0

    def key(self, table: Any, row: int) -> int:
        CountsInItsClass.calls += 1
        return CountsInItsClass.calls % 3


class RemembersInItsModule(OrderPart):
    changes = "never"
    keyed = True

    def key(self, table: Any, row: int) -> int:
        return SEEN.setdefault(row, len(SEEN))


class AnyVictim(MemoryPart):
    newest = False

    def rank_victim(self, table: Any, row: int) -> int:
        return random.randrange(1000)


class ByTheHour(AdmissionPart):
    changes = "pass"

    def room(self, engine: Any, rank: Any, pages: int, free: int, resident: int) -> bool:
        return pages <= free and int(time.time() / 3600) % 2 == 0


class OrderOfASet(RoundRobin):
    """Names of engines in the order of a set, which depends on the hash seed."""

    def place(self, cluster: Any, rows: Any) -> Any:
        names = list({f"engine {engine.id}": None for engine in cluster.takers}.keys())
        names = list(set(names))
        return [(row, (int(names[row % len(names)].split()[1]), 0)) for row in rows]


class Raises(OrderPart):
    changes = "never"
    keyed = True

    def key(self, table: Any, row: int) -> int:
        return 100 // (table.v_prompt[row] % 5)


class LosesARow(RoundRobin):
    def place(self, cluster: Any, rows: Any) -> Any:
        return super().place(cluster, rows)[:2]


class PlacesOnTheDead(LeastWork):
    """Engines that are lost are among those that it chooses from."""

    def place(self, cluster: Any, rows: Any) -> Any:
        return [(row, (row % len(cluster.engines), 0)) for row in rows]


class LeasesTooLittle(AdmissionPart):
    changes = "never"
    reserves = True

    def lease(self, table: Any, row: int, rank: Any) -> int:
        return 1


class LeasesTooMuch(AdmissionPart):
    """Rows that would fit fail because it wants more than there is."""

    changes = "never"
    reserves = True

    def lease(self, table: Any, row: int, rank: Any) -> int:
        return int(rank.size) + 1


class NeverPrefills(PhasePart):
    phases = True

    def starts_prefill(self, engine: Any) -> bool:
        return False


class GuessesText(PredictorPart):
    """What it predicts is no number."""

    def on_arrival(self, table: Any, rows: Any, state: Any) -> None:
        for row in rows:
            table.v_predicted[row] = "long"
