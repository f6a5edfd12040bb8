"""The one transfer of rows with KV, for suspend, restore, steal, migrate, evacuate and hand-over.

    frozen     at the source, by its own decision; pages stay
    requested  in the destination's queue, stamped: an entry whose stamp is old is dead
    granted    by the destination's own decision: pages are leased there
    copying    one batch per source and destination; links serve in order
    committed  the owner changes, the source frees, the destination joins the rows

Suspend and restore are the same with one engine. An abort before the copy leaves the source as it
was, and so does the loss of the destination. A copy that fails is tried again, three times in all;
then the KV of its rows is given up, at both sides, and they wait to be prefilled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.coroutine import Outcome
from batchgen.runtime.engine.copies import (
    asked,
    gave_hbm,
    gave_host,
    give_ready,
    keep,
    not_suspended,
    restored,
    suspended,
    take_ready,
    took_in,
    ungrant,
)
from batchgen.runtime.engine.granting import fits_ever
from batchgen.runtime.engine.lane import enqueue
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.advisor import Link
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine

MOST_TRIES = 3
"""A batch whose copy has failed so often is given up: its rows are prefilled again."""


class Batch:
    """Rows in a copy. kind: "suspend" | "restore" | "migrate"."""

    __slots__ = ("from_host", "kind", "rows", "source", "target", "tries")

    def __init__(
        self,
        kind: str,
        rows: list[int],
        source: EngineMachine,
        target: EngineMachine,
        *,
        from_host: bool,
    ) -> None:
        self.kind, self.rows = kind, rows
        self.source, self.target = source, target
        self.from_host = from_host
        self.tries = 1


class Transfers:
    """See the module."""

    def __init__(self, cluster: ClusterMachine) -> None:
        self._cluster = cluster
        self._table = cluster.table
        self._copies: dict[int, Batch] = {}
        self._next = 0
        self._stamps: dict[int, int] = {}  # row -> stamp of its live request or copy
        self._at: dict[int, EngineMachine] = {}  # row -> destination of its request or copy
        self._wants: dict[int, EngineMachine] = {}  # row -> destination that has not granted yet
        self._stamp = 0

    # -- within one engine ------------------------------------------------------------------------

    def suspend(self, engine: EngineMachine, rows: list[int], out: list[act.Action]) -> None:
        """Rows that left go to the host; their claim on it is leased."""
        self._copy(Batch("suspend", rows, engine, engine, from_host=False), out)

    def restore(self, engine: EngineMachine, rows: list[int], out: list[act.Action]) -> None:
        """Rows on the host come back; their pages are granted."""
        for row in rows:
            self._table.v_status[row] = Status.MOVING
        self._copy(Batch("restore", rows, engine, engine, from_host=True), out)

    # -- between engines --------------------------------------------------------------------------

    def look_for_homes(self, source: EngineMachine, rows: Sequence[int]) -> None:
        """Rows frozen at an engine, or on its host, ask for pages elsewhere."""
        if not rows:
            return
        cluster = self._cluster
        for row in rows:
            homes = cluster.members.homes(source, row)
            gives = cluster.members.gives_some(source)
            if not homes:
                self._nobody(source, row)
            elif not cluster.policy.moves and source.role != "prefill":
                self._recompute_elsewhere(source, row)
            else:
                if source.role == "both":
                    homes = cluster.hunger.among(homes)
                target = cluster.policy.placement.choose(cluster, row, homes)
                if gives or self._is_copied(source, row, target):
                    self.ask(source, [row], target)
                else:
                    self._recompute_elsewhere(source, row)

    def _is_copied(self, source: EngineMachine, row: int, target: EngineMachine) -> bool:
        """Whether recovery copies the row, rather than have it prefilled again. What only prefills
        hands everything over."""
        cluster, table = self._cluster, self._table
        advisor = cluster.advisor
        if not cluster.policy.weighs or advisor is None or source.role != "both":
            return True
        in_host = table.v_status[row] == Status.HOST
        link: Link = "inter" if source.node != target.node else "host" if in_host else "intra"
        copy_ps = advisor.copy_ps(table.v_computed[row], link)
        return bool(cluster.policy.copies(copy_ps, advisor.recompute_ps(table.known_tokens(row))))

    def ask(self, source: EngineMachine, rows: Sequence[int], target: EngineMachine) -> None:
        """Rows ask for pages at one engine."""
        cluster = self._cluster
        for row in rows:
            self._stamp += 1
            self._stamps[row] = self._stamp
            self._at[row] = target
            self._want(row, target)
            asked(target, row, source.id, self._stamp)
            cluster.moved_rows += 1
        cluster.moved(rows, source)
        for row in rows:
            cluster.loads.add(target.id, 0, cluster.work(row))
        cluster.hunger.asked_grew(target)
        cluster.agenda[target.id] = None
        if self._stands_still(source, rows):
            target.hurry()

    def _stands_still(self, source: EngineMachine, rows: Sequence[int]) -> bool:
        """Whether rows of a batch would run, were they elsewhere: they do not wait for a
        boundary."""
        status = self._table.v_status
        if source.role != "both":
            return False
        return not source.alive or any(status[row] == Status.FROZEN for row in rows)

    def _want(self, row: int, target: EngineMachine | None) -> None:
        """The row asks for pages at this engine from now on, or (None) nowhere."""
        before = self._wants.pop(row, None)
        if before is not None:
            before.asked -= 1
        if target is not None:
            self._wants[row] = target
            target.asked += 1

    def redirect(self, donor: EngineMachine, engine: EngineMachine, count: int) -> int:
        """Up to `count` rows that ask for pages at the donor, the last first, ask at the engine,
        where it could hold them; those that came from it stay there. Returns how many."""
        moved: dict[int, list[int]] = {}
        done, kept = 0, list[tuple[int, int, int]]()
        while donor.requests and done < count:
            row, source, stamp = donor.requests.pop()
            if not self.asks(row, stamp):
                continue
            if source != engine.id and not fits_ever(engine, row):
                kept.append((row, source, stamp))
                continue
            done += 1
            moved.setdefault(source, []).append(row)
        donor.requests.extend(reversed(kept))
        for source, rows in moved.items():
            owner = self._cluster.engines[source]
            for row in rows:
                self._unask(owner, row)
                if owner is engine:
                    self._nobody(owner, row)
            if owner is not engine:
                self.ask(owner, rows, engine)
        return done

    def _unask(self, source: EngineMachine, row: int) -> None:
        """The row stays where it is, and with it the work that was counted for its destination."""
        self._stamps.pop(row, None)
        self._want(row, None)
        target, loads = self._at.pop(row, None), self._cluster.loads
        if target is not None:
            work = self._cluster.work(row)
            loads.add(target.id, 0, -work)
            loads.add(source.id, self._table.v_rank[row], work)

    def asks(self, row: int, stamp: int) -> bool:
        """Whether a request is alive."""
        return self._stamps.get(row) == stamp

    def refused(self, row: int, source: int) -> None:
        """The destination can never hold the row (any more)."""
        engine = self._cluster.engines[source]
        self._unask(engine, row)
        self._cluster.asks_again.append((engine, row))

    def move(
        self, rows: list[int], source: int, target: EngineMachine, out: list[act.Action]
    ) -> None:
        """Granted rows are copied to the target: from the source's HBM, or its host."""
        table, engine = self._table, self._cluster.engines[source]
        for row in rows:
            self._want(row, None)
        for from_host in (False, True):
            batch = [row for row in rows if (table.v_status[row] == Status.HOST) == from_host]
            if batch:
                for row in batch:
                    table.v_status[row] = Status.MOVING
                self._copy(Batch("migrate", batch, engine, target, from_host=from_host), out)

    def call_back(self, row: int, engine: EngineMachine | None = None) -> bool:
        """Take a row out of its request, or off `engine`'s host queue; False when it is in a
        copy."""
        if row in self._stamps:
            target = self._at.pop(row)
            self._want(row, None)
            del self._stamps[row]
            self._cluster.agenda[target.id] = None  # a blocked head may be gone
            return True
        return engine is None or take_ready(engine, row)

    def take_back(self, source: EngineMachine) -> None:
        """Rows that stand still at an engine which is well again go on there, unless their pages
        are granted elsewhere."""
        if source.role == "prefill":
            return  # they are to be handed over
        status = self._table.v_status
        for rank in source.ranks:
            for row in [row for row in rank.held if status[row] == Status.FROZEN]:
                target = self._at.get(row)
                if target is not None:
                    self._unask(source, row)
                    self._cluster.agenda[target.id] = None  # a blocked head may be gone
                    self._nobody(source, row)

    def _nobody(self, source: EngineMachine, row: int) -> None:
        """It goes on where it is; on the host of a lost engine, when somebody comes back."""
        keep(source, row)
        if source.alive:
            self._cluster.agenda[source.id] = None

    def _recompute_elsewhere(self, source: EngineMachine, row: int) -> None:
        """Recovery copies nothing: the row is prefilled again at another engine."""
        cluster, table = self._cluster, self._table
        if table.v_status[row] == Status.HOST:
            gave_host(source, [row])
            cluster.out.append(act.Release([row], source.id, "host"))
        else:
            gave_hbm(source, [row])
            cluster.out.append(act.Release([row], source.id, "hbm"))
        cluster.moved([row], source)
        self._lose(row)
        cluster.make_homeless(row)
        self._tell_lost(source, row)
        cluster.agenda[source.id] = None  # its pages are free now

    def _lose(self, row: int) -> None:
        table = self._table
        table.v_recomputed[row] += table.v_computed[row]
        table.v_computed[row] = table.v_host_valid[row] = 0
        table.v_preemptions[row] += 1

    def _tell_lost(self, source: EngineMachine, row: int) -> None:
        """Once the row has its new place: what its body asks for is done there."""
        if self._cluster.bodies is not None:
            self._cluster.tell_body(source, row, Outcome.LOST)

    # -- copies -----------------------------------------------------------------------------------

    def _copy(self, batch: Batch, out: list[act.Action]) -> None:
        table, copy_id = self._table, self._next
        self._next += 1
        self._copies[copy_id] = batch
        computed, valid = table.v_computed, table.v_host_valid
        if batch.kind == "suspend":
            tokens = [computed[row] - min(valid[row], computed[row]) for row in batch.rows]
            ranks = [table.v_rank[row] for row in batch.rows]
        else:
            tokens = [computed[row] for row in batch.rows]
            ranks = [batch.target.granted[row][0] for row in batch.rows]
        out.append(
            act.Copy(
                copy_id,
                list(batch.rows),
                tokens,
                ranks,
                batch.source.id,
                batch.target.id,
                "host" if batch.from_host else "hbm",
                "host" if batch.kind == "suspend" else "hbm",
                batch.kind,
            )
        )

    def done(self, copy_id: int, out: list[act.Action]) -> None:
        """All of a batch has arrived."""
        batch = self._copies.pop(copy_id, None)
        if batch is None:
            return  # cut off by a loss
        rows, source, target = batch.rows, batch.source, batch.target
        cluster = self._cluster
        if batch.kind == "suspend":
            suspended(source, rows)
            out.append(act.Release(list(rows), source.id, "hbm"))
            if source.draining or source.id in cluster.members.slow:
                self.look_for_homes(source, give_ready(source, len(rows)))
            else:
                cluster.hunger.ready_grew(source)
        elif batch.kind == "restore":
            took_in(target, rows)
            restored(target, rows)
        else:
            self._committed(batch, out)
        if cluster.bodies is not None and batch.kind != "suspend":
            for row in rows:
                cluster.tell_body(target, row, Outcome.RESUMED)
        cluster.agenda[target.id] = None

    def _committed(self, batch: Batch, out: list[act.Action]) -> None:
        """The owner of migrating rows changes."""
        rows, source, target = batch.rows, batch.source, batch.target
        table, cluster = self._table, self._cluster
        if source.role == "both" and not (source.alive and batch.from_host):
            target.hurry()
        if batch.from_host:
            gave_host(source, rows)
        else:
            gave_hbm(source, rows)
        out.append(act.Release(list(rows), source.id, "host" if batch.from_host else "hbm"))
        took_in(target, rows)
        for row in rows:
            del self._stamps[row], self._at[row]
            table.v_migrations[row] += 1
            table.v_host_pages[row] = table.v_host_valid[row] = 0
        cluster.orders.follow(rows, source)
        cluster.agenda[source.id] = None

    def failed(self, copy_id: int, out: list[act.Action]) -> None:
        """Nothing of a batch arrived: try again, or give it up."""
        batch = self._copies.pop(copy_id, None)
        if batch is None:
            return
        rows, source, target = batch.rows, batch.source, batch.target
        if batch.tries < MOST_TRIES:
            batch.tries += 1
            self._copy(batch, out)
            return
        cluster = self._cluster
        if batch.kind == "suspend":
            not_suspended(source, rows)
        else:
            ungrant(target, rows)
            if batch.from_host:
                gave_host(source, rows)
            else:
                gave_hbm(source, rows)
        pools: tuple[str, ...] = ("host",) if batch.from_host else ("hbm",)
        if batch.kind == "suspend":
            pools = ("hbm", "host")
        out.extend(act.Release(list(rows), source.id, pool) for pool in pools)
        for row in rows:
            self._unask(source, row)
            self._lose(row)
            self._wait_again(source, row)
            self._tell_lost(source, row)
        cluster.orders.follow(rows, source)
        cluster.agenda[source.id] = None
        cluster.agenda[target.id] = None

    def _wait_again(self, source: EngineMachine, row: int) -> None:
        """A row whose KV is given up waits first in a lane of its engine, or anywhere."""
        cluster = self._cluster
        if source.alive and not source.draining:
            ranks = source.ranks
            rank = ranks[self._table.v_rank[row] % len(ranks)]
            if enqueue(source, row, rank, front=True):
                cluster.hunger.waiting_grew(source)
        else:
            cluster.moved([row], source)
            cluster.make_homeless(row)

    # -- loss -------------------------------------------------------------------------------------

    def cut_off(self, engine: EngineMachine) -> list[int]:
        """The engine is lost: its copies end nowhere. Returns rows of its own suspends and
        restores; rows that were coming from elsewhere ask again."""
        cluster, own = self._cluster, list[int]()
        again: list[tuple[EngineMachine, int]] = []
        for copy_id in sorted(self._copies):
            batch = self._copies[copy_id]
            if batch.kind != "migrate":
                if batch.source is engine:
                    del self._copies[copy_id]
                    own += batch.rows
            elif batch.target is engine:
                del self._copies[copy_id]
                again += [(batch.source, row) for row in batch.rows]
            elif batch.source is engine and not batch.from_host:
                del self._copies[copy_id]
                ungrant(batch.target, batch.rows)  # the rows are among the engine's residents
                cluster.agenda[batch.target.id] = None
        asking = [(row, source) for row, source, stamp in engine.requests if self.asks(row, stamp)]
        again += [(cluster.engines[source], row) for row, source in asking]
        for rank in engine.ranks:
            for row in rank.held:
                if row in self._stamps:
                    cluster.agenda[self._at[row].id] = None
                    self._unask(engine, row)
        for source, row in again:
            self._unask(source, row)
            if source is not engine:
                frozen = row in source.ranks[self._table.v_rank[row] % len(source.ranks)].held
                self._table.v_status[row] = Status.FROZEN if frozen else Status.HOST
                cluster.asks_again.append((source, row))
            elif self._table.v_status[row] == Status.MOVING:
                self._table.v_status[row] = Status.HOST
                own.append(row)
        return own

    def leaving_host(self, engine: EngineMachine) -> list[int]:
        """Rows on the engine's host that ask for pages elsewhere, or are being copied from it."""
        table = self._table
        rows = [row for row in self._stamps if table.v_engine[row] == engine.id]
        return [row for row in rows if table.v_host_pages[row] and table.v_status[row] in _HOSTED]

    def in_copy(self) -> dict[int, Batch]:
        """Batches by copy id (for checks)."""
        return self._copies


_HOSTED = (Status.HOST, Status.MOVING)
