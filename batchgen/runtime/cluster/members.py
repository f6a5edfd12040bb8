"""Which engines take rows: devices noticed, lost and back, engines slow and healed.

An engine lives while all its devices do. Rows never get lost with it: they are copied away, found
on its host, or prefilled again elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen import events as ev
from batchgen.runtime.cluster.homes import Homes
from batchgen.runtime.engine.copies import give_ready
from batchgen.runtime.engine.granting import fits_ever
from batchgen.runtime.engine.lane import reclaim
from batchgen.runtime.engine.leaving import lost
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine

EVERYTHING = 1 << 40


def _takes(one: EngineMachine, source: EngineMachine, slow: Collection[int]) -> bool:
    """Whether an engine takes rows with KV of another. Not while rows stand still on it too: they
    hold the pages, and each would wait for the other."""
    if one is source or one.freezing or one.id in slow:
        return False
    return not one.asks_elsewhere


class Members:
    """See the module."""

    def __init__(self, cluster: ClusterMachine) -> None:
        self._cluster = cluster
        self._lost: list[set[int]] = [set() for _ in cluster.engines]  # devices per engine
        self._noticed: list[set[int]] = [set() for _ in cluster.engines]
        self.slow: set[int] = set()
        self.choose_takers()

    def choose_takers(self) -> None:
        """The engines that get rows: those that are alive, will stay and are fast; without such,
        those that are left."""
        cluster = self._cluster
        alive = [one for one in cluster.engines if one.alive]
        first = [one for one in alive if one.role != "decode"]
        staying = [one for one in first if not self._noticed[one.id]]
        fast = [one for one in staying if one.id not in self.slow]
        decoders = [one for one in alive if one.role == "decode"]
        cluster.takers = fast or staying or first or decoders
        cluster.taker_ids = frozenset(one.id for one in cluster.takers)
        cluster.decoders = [one for one in decoders if not self._noticed[one.id]] or decoders
        for engine in alive:
            others = cluster.takers if engine.role != "decode" else cluster.decoders
            engine.drain(bool(self._noticed[engine.id]) and engine not in others)
        cluster.loads.takers.admit(cluster.takers)
        cluster.loads.decoders.admit(cluster.decoders)

    def gives_some(self, source: EngineMachine) -> bool:
        """Whether those rows leave an engine, as it lags, that gain by it with their copies. None
        is prefilled again: nothing would keep it from coming back."""
        return self._cluster.pace.lags(source) and not source.draining

    def homes(self, source: EngineMachine, row: int) -> Homes:
        """Where a row with KV of an engine may go, be there any place or none. What runs on a slow
        engine goes to a fast one, or stays; what runs on one that lags, to one that is faster."""
        cluster = self._cluster
        loads = cluster.loads
        if source.role == "prefill":
            return Homes(cluster.decoders, lambda one: fits_ever(one, row), loads, loads.decoders)
        slow = frozenset[int]() if source.draining or not source.alive else self.slow
        mixed, pace = source.role == "both", cluster.pace
        gives, mine = self.gives_some(source), pace.lateness(source)

        def suits(one: EngineMachine) -> bool:
            if gives and pace.lateness(one) >= mine:
                return False
            return _takes(one, source, slow) and fits_ever(one, row)

        return Homes(
            cluster.takers if mixed else cluster.decoders,
            suits,
            loads,
            loads.takers if mixed else loads.decoders,
        )

    # -- devices ----------------------------------------------------------------------------------

    def notice(self, event: ev.DeviceNotice) -> None:
        """A device will go: its engine's rows move to others, if there are any."""
        engine = self._cluster.engines[event.engine]
        knew = bool(self._noticed[engine.id])
        self._noticed[engine.id].add(event.device)
        if not engine.alive:
            return
        if not knew:
            self.choose_takers()
        if engine.draining:
            self.empty(engine)

    def empty(self, engine: EngineMachine) -> None:
        """Everything on the engine looks for another home."""
        cluster = self._cluster
        self.move_waiting(engine)
        cluster.transfers.look_for_homes(engine, give_ready(engine, EVERYTHING))
        engine.send_away()
        cluster.agenda[engine.id] = None

    def move_waiting(self, engine: EngineMachine) -> None:
        """Rows that wait at an engine wait elsewhere."""
        cluster = self._cluster
        if not any(one is not engine for one in cluster.takers):
            return
        rows = reclaim(engine, EVERYTHING)
        if rows:
            cluster.moved(rows, engine)
            cluster.orders.follow(rows, engine)
            for row in rows:
                cluster.table.v_status[row] = Status.INIT
            cluster.settle(sorted(rows))

    def lost(self, event: ev.DeviceLost, out: list[act.Action]) -> None:
        cluster = self._cluster
        engine = cluster.engines[event.engine]
        self._lost[engine.id].add(event.device)
        if not engine.alive:
            return
        cluster.hunger.fed(engine)
        cluster.orders.later += engine.orders.items()
        remains = lost(engine, event)
        self.slow.discard(engine.id)
        cluster.pace.forget(engine)
        cluster.loads.clear(engine.id)
        self.choose_takers()
        table = cluster.table
        self._rehome_hosted(engine)
        rows = [*remains.homeless, *remains.waited]
        rows = sorted(row for row in rows if table.v_status[row] == Status.INIT)
        for row in rows:
            table.v_migrations[row] += 1
        if rows:
            cluster.settle(rows)

    def _rehome_hosted(self, engine: EngineMachine) -> None:
        """Rows on the host of a lost engine go to others, if there are any."""
        if any(self.homes(engine, row) for row in engine.ready):
            self._cluster.transfers.look_for_homes(engine, give_ready(engine, EVERYTHING))

    def back(self, event: ev.DeviceBack) -> None:
        """A device returns, or its notice is withdrawn."""
        cluster = self._cluster
        engine = cluster.engines[event.engine]
        self._lost[engine.id].discard(event.device)
        self._noticed[engine.id].discard(event.device)
        if self._lost[engine.id]:
            return
        stayed = [one for one in cluster.engines if one.alive and not one.draining]
        if engine.alive:
            cluster.transfers.take_back(engine)
        else:
            engine.revive()
        self.choose_takers()
        cluster.loads.level(engine.id)
        engine.hurry()
        cluster.agenda[engine.id] = None
        homeless, cluster.homeless = cluster.homeless, []
        if homeless:
            cluster.settle(homeless)
        for other in cluster.engines:
            if not other.alive:
                self._rehome_hosted(other)
        for other in stayed:
            if other.draining:  # it had a notice, and nobody to give its rows to
                self.empty(other)

    # -- slowness ---------------------------------------------------------------------------------

    def helps(self, engine: EngineMachine) -> bool:
        """Whether a slow engine may take rows that wait elsewhere, in proportion to its speed."""
        slow = engine.id in self.slow and engine.alive and engine.role != "decode"
        return slow and not self._noticed[engine.id]

    def mark_slow(self, engine: EngineMachine) -> None:
        """The engine's passes take far too long: it gets no new rows, and others take its own."""
        if engine.id in self.slow:
            return
        self.slow.add(engine.id)
        self.choose_takers()
        self.move_waiting(engine)
        self._cluster.hunger.fed(engine)
        self._cluster.hunger.later = True

    def heal(self, engine: EngineMachine) -> None:
        """Its passes take as long as they should again."""
        if engine.id not in self.slow:
            return
        self.slow.discard(engine.id)
        self.choose_takers()
        self._cluster.transfers.take_back(engine)
        self._cluster.loads.level(engine.id)
        engine.forget_hunger()
