"""Hungry engines and who feeds them. An engine is hungry when its lanes are empty; it says so once
and stays known until rows come.

Four ways to feed, cheapest first: rows that wait elsewhere (nothing to move), rows with KV that ask
for pages elsewhere (they ask here), rows on other hosts (a copy), running rows of an engine that is
slow, or that lags (frozen, then copied). Donors live in lazy heaps, so that no question costs a
scan over engines.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchgen.actions import Place
from batchgen.runtime.cluster.level import rows_to_give
from batchgen.runtime.engine.copies import give_ready
from batchgen.runtime.engine.lane import offer, reclaim

if TYPE_CHECKING:
    from batchgen.runtime.cluster.homes import Homes
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine


class Most:
    """At which engine something takes longest: a lazy heap whose entries only over-estimate,
    because every growth is recorded. It weighs counts by the slowness of engines."""

    def __init__(self, count: Callable[[int], int], slowness: Callable[[int], int]) -> None:
        self._count, self._slowness = count, slowness
        self._heap: list[tuple[int, int]] = []

    def grew(self, engine: int) -> None:
        """It has more there, or the engine is slower."""
        heapq.heappush(self._heap, (-self._count(engine) * self._slowness(engine), engine))

    def top(self) -> tuple[int, int]:
        """(engine, count), the lower number at ties; (-1, 0) when nobody has any."""
        heap = self._heap
        while heap:
            estimate, engine = heap[0]
            count = self._count(engine)
            now = count * self._slowness(engine)
            if now == -estimate and now:
                return engine, count
            if now:
                heapq.heapreplace(heap, (-now, engine))
            else:
                heapq.heappop(heap)
        return -1, 0


class Hunger:
    """See the module."""

    def __init__(self, cluster: ClusterMachine) -> None:
        self._cluster = cluster
        engines = cluster.engines

        def slowness(index: int) -> int:
            return cluster.pace.slowness(engines[index])

        self._waiting = Most(lambda index: engines[index].num_waiting, slowness)
        self._asked = Most(lambda index: engines[index].asked, slowness)
        self._ready = Most(lambda index: len(engines[index].ready), slowness)
        self._least = cluster.policy.steal_min  # fewer rows than these stay where they are
        self._hungry: dict[int, None] = {}
        self._ask: dict[
            int, None
        ] = {}  # those to ask as soon as rows wait; others do at boundaries
        self.later = False  # somebody may have something to give now

    def somebody_waits(self) -> bool:
        """Whether a row waits in any lane."""
        return self._waiting.top()[1] > 0

    def waiting_grew(self, engine: EngineMachine) -> None:
        self._waiting.grew(engine.id)
        if self._hungry:
            self.later = True

    def asked_grew(self, engine: EngineMachine) -> None:
        """Rows of others ask for pages at the engine."""
        if self._cluster.policy.steals and engine.role == "both":
            self._asked.grew(engine.id)

    def slower(self, engine: EngineMachine) -> None:
        """What the engine has takes longer than it did."""
        self._waiting.grew(engine.id)
        if engine.role == "both":
            self._asked.grew(engine.id)
            self._ready.grew(engine.id)

    def ready_grew(self, engine: EngineMachine) -> None:
        """Rows on its host may be restored elsewhere; where roles are apart nobody asks for them,
        for hungry engines prefill and these rows decode."""
        if self._cluster.policy.steals and engine.role == "both":
            self._ready.grew(engine.id)
            if self._hungry:
                self.later = True

    def fed(self, engine: EngineMachine) -> None:
        self._hungry.pop(engine.id, None)
        self._ask.pop(engine.id, None)

    def among(self, homes: Homes) -> Homes:
        """Those of the engines that are hungry, the longest first; all of them if none is."""
        if not self._hungry:
            return homes
        taking = self._cluster.taker_ids
        engines = [self._cluster.engines[index] for index in self._hungry if index in taking]
        hungry = homes.within(engines)
        return hungry if hungry else homes

    def hungry(self, engine: EngineMachine) -> bool:
        """Upcall: nothing waits at the engine. True when rows were offered at once; after an event
        that concerns several engines all of them decide before any takes rows of another."""
        self._hungry[engine.id] = None
        if self._cluster.kicking:
            self._ask[engine.id] = None
            self.later = True
            return False
        return self._answer(engine)

    def _answer(self, engine: EngineMachine) -> bool:
        """An engine without anything to do is asked again by whatever changes."""
        if engine.settled:
            self._ask.pop(engine.id, None)
        else:
            self._ask[engine.id] = None
        return self._feed(engine)

    def feed_all(self) -> None:
        """Something has changed: whoever is hungry asks again, as long as somebody gives."""
        self.later = False
        with_kv = self._with_kv_to_give()
        if not with_kv and self._waiting.top()[1] < self._least:
            return  # asked before the list is made: most events end here
        for index in list(self._hungry if with_kv else self._ask):
            if self._answer(self._cluster.engines[index]):
                self._cluster.agenda[index] = None
            if self._waiting.top()[1] < self._least and not self._with_kv_to_give():
                return

    def _with_kv_to_give(self) -> bool:
        """Whether rows with KV would go to whoever asks."""
        if self._ready.top()[1] >= self._least:
            return True
        cluster = self._cluster
        return any(
            self._may_send_away(index) for index in (*cluster.members.slow, *cluster.pace.lagging)
        )

    def _feed(self, engine: EngineMachine) -> bool:
        cluster = self._cluster
        takes = engine.id in cluster.taker_ids
        if engine.freezing or not (takes or cluster.members.helps(engine)):
            return False
        donor_id, count = self._waiting.top()
        least = self._least
        if self._gives(donor_id, engine) and count >= least:
            donor = cluster.engines[donor_id]
            share = min(self._share(donor, engine), count)
            if share:
                self.give_waiting(donor, engine, share)
                return True
        if not takes:
            return False  # a slow one gets nothing that would have to be moved away again
        donor_id, count = self._asked.top()
        if donor_id not in (-1, engine.id) and count >= least:
            donor = cluster.engines[donor_id]
            share = min(self._share(donor, engine), count)
            if share and cluster.transfers.redirect(donor, engine, share):
                self._has_asked(donor, engine)
                return False
        donor_id, count = self._ready.top()
        if donor_id not in (-1, engine.id) and count >= least:
            donor = cluster.engines[donor_id]
            share = min(self._share(donor, engine), count)
            if share and donor.alive:  # a lost engine's look for homes by themselves
                donor.settled -= share
                cluster.transfers.ask(donor, give_ready(donor, share), engine)
                self._has_asked(donor, engine)
                return False
        if not (engine.ready or engine.asked):
            self._rescue(engine)
        return False

    def _has_asked(self, donor: EngineMachine, engine: EngineMachine) -> None:
        """Rows with KV ask at the engine, which may be hungry for more."""
        self.fed(engine)
        engine.forget_hunger()
        self._cluster.agenda[engine.id] = None
        if not donor.settled:
            self._cluster.agenda[donor.id] = None

    def _share(self, donor: EngineMachine, engine: EngineMachine) -> int:
        """How many rows an engine takes, so that each of them gains: it comes to an engine that has
        less to do even with it, at the speeds of both, and all that are hungry take as many. What
        runs counts as much as what waits: whoever has prefilled quickly still has to decode. Where
        rows have ended at this boundary of the engine, but not yet at that of the other, that is no
        difference."""
        pace = self._cluster.pace
        slowness, other = pace.slowness(engine), pace.slowness(donor)
        mine = engine.settled + engine.num_waiting
        mine = (max(mine, engine.had) if mine else 0) + engine.asked
        theirs = donor.settled + donor.num_waiting + donor.asked
        surplus = (theirs + 1) * other - mine * slowness - 1
        if surplus <= 0:
            return 0
        fair = surplus // (slowness + max(len(self._hungry), 1) * other)
        return max(fair, 1) if surplus >= slowness + other else 0

    def _gives(self, donor_id: int, engine: EngineMachine) -> bool:
        """Whether waiting rows of the donor can run at the engine: a pool may have shrunk."""
        if donor_id in (-1, engine.id):
            return False
        donor = self._cluster.engines[donor_id]
        return engine.roomiest >= donor.roomiest

    def give_waiting(self, donor: EngineMachine, engine: EngineMachine, count: int) -> None:
        """Waiting rows of the donor, those that would run last, wait at the engine."""
        cluster = self._cluster
        rows = reclaim(donor, count)
        if not rows:
            return
        rows.reverse()
        cluster.moved(rows, donor)
        cluster.orders.follow(rows, donor)
        if len(cluster.policy.shares) > 1 or not donor.num_waiting:
            # Shares of its lanes see each other, or it is hungry itself now and has to say so.
            cluster.agenda[donor.id] = None
        engine.had += len(rows)
        offer(engine, rows)
        cluster.arrived_at(rows, engine)
        cluster.out.append(Place(rows, engine.id))
        self.fed(engine)
        self.waiting_grew(engine)

    def _rescue(self, engine: EngineMachine) -> None:
        """Running rows of a slow engine come to hungry ones that are fast, as large a part of them
        as these are of all that take rows: who is not hungry yet takes its part later. Where all
        are slow they stay: each would freeze what it took from another, and nobody would run."""
        cluster = self._cluster
        if engine.id in cluster.members.slow:
            return
        for index in sorted(cluster.pace.lagging):
            if self._level(cluster.engines[index], engine):
                return
        for index in sorted(cluster.members.slow):
            if index != engine.id and self._may_send_away(index):
                hungry = sum(one in cluster.taker_ids for one in self._hungry)
                takers = len(cluster.taker_ids)
                cluster.engines[index].send_away(max(1, min(hungry, takers)), takers)
                cluster.agenda[index] = None
                return

    def _level(self, donor: EngineMachine, engine: EngineMachine) -> bool:
        """Running rows of an engine that lags come to those hungry ones that are faster, as many as
        gain by it; once after each of its timed passes. Whether any do."""
        cluster, pace = self._cluster, self._cluster.pace
        if engine.role != "both" or donor.role != "both" or not self._may_send_away(donor.id):
            return False
        if not cluster.policy.moves:
            return False
        hungry = [cluster.engines[index] for index in self._hungry]
        takers = [one for one in hungry if self._outruns(one, donor)]
        if engine not in takers:
            return False
        count = rows_to_give(cluster, donor, takers)
        del pace.lagging[donor.id]  # until it is timed again
        if not count:
            return False
        donor.send_away(count, pace.seen[donor.id].rows)
        cluster.agenda[donor.id] = None
        return True

    def _outruns(self, engine: EngineMachine, donor: EngineMachine) -> bool:
        """Whether rows of the donor may gain at the engine."""
        cluster = self._cluster
        if engine.id not in cluster.taker_ids or engine.freezing or engine.asks_elsewhere:
            return False
        return cluster.pace.lateness(engine) < cluster.pace.lateness(donor)

    def _may_send_away(self, index: int) -> bool:
        """Whether a slow engine has running rows, and is not just being tried with one."""
        slow = self._cluster.engines[index]
        if not slow.alive or slow.freezing or self._cluster.pace.tries(slow):
            return False
        return any(rank.running for rank in slow.ranks)

    def probe(self, engine: EngineMachine) -> bool:
        """A slow engine is tried again with a row that waits elsewhere; False when none does."""
        cluster = self._cluster
        donor_id, _ = self._waiting.top()
        if not self._gives(donor_id, engine):
            return False
        self.give_waiting(cluster.engines[donor_id], engine, 1)
        engine.look_now()
        cluster.agenda[engine.id] = None
        return True
