"""Slowness, inferred: now and then one pass of an engine is timed by itself and held against what
the cost model expects of exactly its composition. One late pass is an accident; when the next ones
are far too late too, the engine is slow: it gets no new rows, and others take what it has. When
they are late by less, time and again, it lags: it keeps its place, at its speed
(`batchgen.runtime.cluster.level`).

Slowness is no event, and it heals: an engine that works is timed again, and a slow one that has
nothing to do is tried with a row after a while, later and later: one that waits elsewhere, or where
none does the next that comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.runtime.cluster.lag import AS_EXPECTED, LATE_ON_BALANCE, Lag
from batchgen.runtime.cluster.level import Composition, seen

if TYPE_CHECKING:
    from batchgen.runtime.advisor import RankLoad
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine

FIRST_WAIT = 256
"""Passes (of the slow kind) after which an idle slow engine is tried again; then twice as many."""
LONGEST_WAIT = 1 << 16
BETWEEN = 4
"""Passes between two that are timed while it is open whether an engine lags: accidents last a few
passes."""
LATE_IN_A_ROW = 3
"""Timed passes, one right after the other, that must all be late: where healthy passes are late by
accident now and then, an engine is taken for slow with the third power of that chance."""


class Pace:
    """See the module."""

    def __init__(self, cluster: ClusterMachine) -> None:
        self._cluster = cluster
        # Whether anybody would act on it.
        several = len(cluster.engines) > 1 and cluster.advisor is not None
        self.watches = cluster.policy.steals and several
        self._waits: dict[int, int] = {}  # slow engine -> passes until it is tried again
        self._pass_ps: dict[int, int] = {}
        self._slowness: dict[int, int] = {}
        self._late: dict[
            int, list[int]
        ] = {}  # engine not known as slow -> its passes late in a row
        self._lags: dict[int, Lag] = {}  # engine with late passes that is not slow
        self.lagging: dict[int, None] = {}  # engines that lag, and may give running rows
        self.seen: dict[int, Composition] = {}  # engine -> what its newest timed pass held
        self.timed = self.alarms = 0  # passes timed, engines taken for slow or found to lag
        self._tries: set[int] = set()  # slow engines that have got a row to show their pace
        self._due: dict[int, None] = {}  # slow engines that get one as soon as there is one
        self._pending: set[int] = set()  # engines whose timer is set

    def expected_ps(self, engine: EngineMachine, loads: list[RankLoad]) -> int:
        """Of the pass that is timed, which the engine launches now."""
        self.seen[engine.id] = seen(engine, loads, rows=engine.id in self._lags)
        return self.expected_at(engine, loads)

    def expected_at(self, engine: EngineMachine, loads: list[RankLoad]) -> int:
        """A pass of these loads on the engine, were it healthy, in ps."""
        advisor = self._cluster.advisor
        assert advisor is not None
        return advisor.expected_ps(engine.id, engine.layout, loads)

    def report(self, engine: EngineMachine, last: int, duration_ps: int) -> None:
        """A report that ends with pass `last`."""
        assert engine.probe is not None
        number, expected_ps = engine.probe
        if last < number:
            return
        engine.time_pass(None)
        self._tries.discard(engine.id)
        if last > number or expected_ps <= 0 or duration_ps <= 0:
            return  # more than that pass, or nothing of it
        cluster = self._cluster
        self.timed += 1
        if engine.id not in cluster.members.slow:
            self._weigh(engine, duration_ps, expected_ps)
        if cluster.policy.placement.is_slow(duration_ps, expected_ps):
            slowness = max(AS_EXPECTED, duration_ps * AS_EXPECTED // expected_ps)
            if engine.id not in cluster.members.slow:
                late = self._late.setdefault(engine.id, [])
                late.append(slowness)
                if len(late) < LATE_IN_A_ROW:
                    engine.time_pass(engine.q)
                    return
                slowness = sorted(self._late.pop(engine.id))[LATE_IN_A_ROW // 2]
                self.alarms += 1
                self._lags.pop(engine.id, None)
                self.lagging.pop(engine.id, None)
            self._pass_ps[engine.id] = duration_ps
            self._slowness[engine.id] = slowness
            cluster.hunger.slower(engine)
            cluster.hunger.later = True  # whoever is free takes what runs here
            if engine.id not in cluster.members.slow:
                cluster.members.mark_slow(engine)
                self._waits.setdefault(engine.id, FIRST_WAIT)
                self._try_later(engine)
        elif engine.id in cluster.members.slow:
            self.forget(engine)
            cluster.members.heal(engine)
        else:
            self._late.pop(engine.id, None)

    def _weigh(self, engine: EngineMachine, duration_ps: int, expected_ps: int) -> None:
        """A timed pass of an engine that is not slow: whether it lags, and by how much."""
        lag, placement = self._lags.get(engine.id), self._cluster.policy.placement
        is_late = duration_ps > expected_ps and placement.is_late(duration_ps, expected_ps)
        if lag is None:
            if not is_late:
                return
            lag = self._lags[engine.id] = Lag()
        knew = lag.found
        lag.tell(is_late, duration_ps * AS_EXPECTED // expected_ps)
        if lag.balance <= 0:
            self._in_time(engine)
            return
        if lag.balance < LATE_ON_BALANCE:
            engine.time_pass(engine.q + BETWEEN)
        if lag.found:
            self.alarms += not knew
            self.lagging[engine.id] = None
            self._cluster.hunger.later = True  # whoever is free may take of what runs here

    def _in_time(self, engine: EngineMachine) -> None:
        """The engine does not lag, or not any more."""
        del self._lags[engine.id]
        self.lagging.pop(engine.id, None)

    def slowness(self, engine: EngineMachine) -> int:
        """How long the passes of a slow engine take, in thousandths of what they should; of others
        as they should."""
        return self._slowness.get(engine.id, AS_EXPECTED)

    def lateness(self, engine: EngineMachine) -> int:
        """The same, also of an engine that lags, or may: where all are late by as much, since the
        cost model is wrong, none must count as faster because it was found later. It is for running
        rows: what waits at an engine that lags counts as anywhere, for others take that as soon as
        they have nothing, and took too much when it was weighed."""
        lag = self._lags.get(engine.id)
        return self.slowness(engine) if lag is None else lag.lateness

    def lags(self, engine: EngineMachine) -> bool:
        """Whether an engine that is not slow takes longer than it should."""
        lag = self._lags.get(engine.id)
        return lag is not None and lag.found

    def tries(self, engine: EngineMachine) -> bool:
        """Whether a slow engine is just being tried again: its row stays with it."""
        return engine.id in self._tries

    def forget(self, engine: EngineMachine) -> None:
        self._waits.pop(engine.id, None)
        self._slowness.pop(engine.id, None)
        self._lags.pop(engine.id, None)
        self.lagging.pop(engine.id, None)
        self.seen.pop(engine.id, None)
        self._late.pop(engine.id, None)
        self._tries.discard(engine.id)
        self._due.pop(engine.id, None)

    def take_due(self, num_rows: int) -> list[EngineMachine]:
        """Slow engines whose try is due, for so many rows that need an engine: one row each."""
        due = [self._cluster.engines[index] for index in list(self._due)[:num_rows]]
        for engine in due:
            del self._due[engine.id]
            self._tries.add(engine.id)
            self._try_later(engine)
        return due

    def _try_later(self, engine: EngineMachine) -> None:
        if engine.id in self._pending:
            return
        self._pending.add(engine.id)
        wait = self._waits[engine.id]
        self._waits[engine.id] = min(2 * wait, LONGEST_WAIT)
        cluster = self._cluster
        timer = cluster.timer(("probe", engine.id))
        cluster.out.append(act.Wake(timer, cluster.now + wait * self._pass_ps[engine.id]))

    def woken(self, engine: EngineMachine) -> None:
        """Time to try a slow engine again, if it has nothing to show by itself."""
        self._pending.discard(engine.id)
        cluster = self._cluster
        if engine.id not in cluster.members.slow or not engine.alive:
            return
        self._tries.discard(engine.id)
        if engine.num_resident or engine.num_waiting:
            self._try_later(engine)
        elif cluster.hunger.probe(engine):
            self._tries.add(engine.id)
            self._try_later(engine)
        else:
            self._due[engine.id] = None
