"""Devices noticed, lost, back or short of memory, and switches of layout. No row is ever lost."""

from __future__ import annotations

from batchgen import actions as act
from batchgen import events as ev
from batchgen.actions import Action
from batchgen.errors import IllegalTransition
from batchgen.runtime.base import RuntimeBase
from batchgen.runtime.engine import Engine
from batchgen.sequence import Status


class DeviceEvents(RuntimeBase):
    """See the module."""

    def _device_notice(self, event: ev.DeviceNotice, out: list[Action]) -> None:
        engine = self.cluster.engines[event.engine]
        engine.draining = True
        engine.decide_q = engine.q
        if engine.inflight is not None:
            if engine.inflight.n > 1:
                out.append(act.Cut(engine.id))
        else:
            self._decide(engine, out)

    def _device_lost(self, event: ev.DeviceLost, out: list[Action]) -> None:
        """The HBM of the engine is gone; its host pool is not. Rows get a new home."""
        cluster, table = self.cluster, self.table
        engine = cluster.engines[event.engine]
        if not engine.alive:
            raise IllegalTransition(f"engine {engine.id} is lost twice")
        if engine.inflight is not None:
            # The step is void: nothing that it computed counts.
            self._return_host_lease(engine, 0)
            engine.inflight = None
        engine.alive = False
        engine.epoch += 1
        engine.switching = ""
        engine.layout = "home"
        engine.heir = None
        engine.slow = False
        engine.turn_passes = engine.turn_ps = engine.turn_expected_ps = 0
        cluster.slow.discard(engine.id)
        engine.announced.clear()
        engine.touched.clear()
        homeless: list[int] = []
        for rank in engine.ranks:
            for row in list(rank.running):
                rank.leave(row, engine.q)
                homeless.append(row)
            homeless.extend(rank.prefilling)
            homeless.extend(rank.parked)
            rank.prefilling.clear()
            rank.parked.clear()
            rank.streaming = False
        for rows in engine.outbound.values():
            homeless.extend(rows)
        for pairs in engine.inbound.values():
            homeless.extend(row for row, _ in pairs)
        for copy_id in [*engine.outbound, *engine.inbound]:
            del self._copies[copy_id]
        engine.outbound.clear()
        engine.inbound.clear()
        for row in homeless:
            rank = engine.ranks[table.v_rank[row]]
            rank.release_hbm(row)
            rank.release_host(row)
            rank.forget_kv(row)
            table.v_preemptions[row] += 1
            table.move(row, Status.INACTIVE)
            self.bodies.lost(row)
        heirs, orphans = self._bequeath(engine)
        homeless.extend(orphans)
        for rank in engine.ranks:
            rank.forget_prefixes()
        doomed, engine.doomed = engine.doomed, {}
        for row, code in doomed.items():
            if row in homeless:
                homeless.remove(row)
                self._end_row(row, code, out)
        self._evacuate(engine, homeless, out)
        for heir in heirs:
            self._decide(heir, out)

    def _bequeath(self, engine: Engine) -> tuple[list[Engine], list[int]]:
        """Rows on the host outlive the device; engines that share the pool take them as they are.

        Returns those engines, and the rows that nobody can take so: their KV is forgotten.
        """
        table = self.table
        heirs = [other for other in self.cluster.alive() if other.host is engine.host]
        orphans: list[int] = []
        for position, row in enumerate(engine.ready):
            if heirs:
                heir = heirs[position % len(heirs)]
                table.v_engine[row] = heir.id
                table.v_rank[row] = 0
                heir.ready.append(row)
                heir.dirty.update(range(len(heir.ranks)))
                table.v_migrations[row] += 1
                if row in engine.doomed:
                    heir.doomed[row] = engine.doomed.pop(row)
            else:
                rank = engine.ranks[table.v_rank[row]]
                rank.release_host(row)
                rank.forget_kv(row)
                self.bodies.lost(row)
                orphans.append(row)
        engine.ready.clear()
        return heirs, orphans

    def _evacuate(self, engine: Engine, homeless: list[int], out: list[Action]) -> None:
        """Everything that waits on the engine, and `homeless`, is placed anew."""
        table, cluster = self.table, self.cluster
        for rank in engine.ranks:
            waiting = rank.lane.drain()
            cluster.total_waiting -= rank.waiting
            rank.waiting = 0
            for row in waiting:
                if table.v_host_pages[row]:
                    rank.release_host(row)
            homeless.extend(waiting)
        for row in homeless:
            table.v_engine[row] = -1
            table.v_migrations[row] += 1
        if homeless:
            self._settle(sorted(homeless), out)

    def _device_back(self, event: ev.DeviceBack, out: list[Action]) -> None:
        engine = self.cluster.engines[event.engine]
        engine.alive = True
        engine.draining = False
        engine.decide_q = engine.q
        engine.dirty.update(range(len(engine.ranks)))
        homeless, self.cluster.homeless = self.cluster.homeless, []
        if homeless:
            self._settle(homeless, out)
        self._decide(engine, out)

    def _pool_short(self, event: ev.PoolShort, out: list[Action]) -> None:
        """Shrink a pool as pages come free; rows give way as they would for growth."""
        engine = self.cluster.engines[event.engine]
        engine.pool_debt[event.rank] = engine.pool_debt.get(event.rank, 0) + event.pages
        engine.dirty.add(event.rank)
        if engine.inflight is None:
            self._decide(engine, out)
        elif engine.inflight.n > 1:
            out.append(act.Cut(engine.id))

    def _pay_pool_debt(self, engine: Engine) -> None:
        for index, pages in list(engine.pool_debt.items()):
            pool = engine.ranks[index].pool
            pages = min(pages, pool.size)
            paid = min(pages, pool.free)
            pool.size -= paid
            engine.ranks[index].shrink_cache()
            engine.ranks[index].limit_q = engine.q
            if paid == pages:
                del engine.pool_debt[index]
            else:
                engine.pool_debt[index] = pages - paid

    def _layout_ready(self, event: ev.LayoutReady, out: list[Action]) -> None:
        engine = self.cluster.engines[event.engine]
        if not engine.switching or event.epoch != engine.epoch + 1:
            return
        engine.layout = engine.switching
        engine.switching = ""
        engine.epoch = event.epoch
        self._decide(engine, out)

    def _layout_failed(self, event: ev.LayoutFailed, out: list[Action]) -> None:
        engine = self.cluster.engines[event.engine]
        if engine.switching:
            engine.switching = ""
            engine.switch_failed = True  # the old layout stands; never try again
            self._decide(engine, out)
