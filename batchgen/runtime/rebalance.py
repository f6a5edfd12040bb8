"""What an engine does beyond itself at its turns: take work from others, switch its layout.

Three ways to take work, cheapest first: rows that wait (nothing to move), rows that are ready on a
host (the same host: a change of owner; another: a copy, `migrate`), and running rows of a slow
engine, which yields them to its host first.
"""

from __future__ import annotations

from batchgen import actions as act
from batchgen.actions import Action
from batchgen.runtime.base import RuntimeBase
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine


class Rebalance(RuntimeBase):
    """See the module."""

    def _feed(self, engine: Engine, out: list[Action]) -> None:
        """A hungry engine (nothing waits, nothing is ready or coming) may take rows of others."""
        cluster = self.cluster
        if engine.ready or engine.inbound or engine.arriving or engine.draining or engine.slow:
            return
        if not (cluster.total_waiting or cluster.total_ready[0] or cluster.slow):
            return
        if engine.num_waiting or engine.num_prefilling:
            return
        placement = self.policy["placement"]
        stolen = placement.steal(cluster, engine)
        if stolen is not None:
            donor, count = stolen
            self._steal_waiting(donor, count, engine, out)
            return
        taken = placement.migrate(cluster, engine)
        if taken is not None:
            donor, count = taken
            rows = [donor.ready.pop() for _ in range(min(count, len(donor.ready)))]
            rows.reverse()
            self._migrate(rows, donor, engine, out)
            return
        slow = placement.rescue(cluster, engine)
        if slow is not None:
            slow.heir = engine.id  # its recovery part yields the rows at its next decision

    def _steal_waiting(self, donor: Engine, count: int, engine: Engine, out: list[Action]) -> None:
        """`count` waiting rows of the donor, last first, change their owner."""
        table = self.table
        for position in range(len(donor.ranks)):
            rank = donor.ranks[-1 - position]
            share = min(-(-count // (len(donor.ranks) - position)), rank.waiting)
            if not share:
                continue
            rows = rank.lane.take_last(share)
            count -= len(rows)
            rank.waiting -= len(rows)
            target = engine.ranks[position % len(engine.ranks)]
            rows.reverse()
            for row in rows:
                if table.v_host_pages[row]:
                    rank.release_host(row)
                table.v_engine[row] = engine.id
                table.v_rank[row] = target.index
                table.v_migrations[row] += 1
                target.enqueue(row)
            engine.dirty.add(target.index)
            out.append(act.Place(rows, engine.id, target.index))
        self.cluster.queue_grew(engine)

    # -- migrate ----------------------------------------------------------------------------------

    def _migrate(self, rows: list[int], donor: Engine, target: Engine, out: list[Action]) -> None:
        """Rows whose KV is on the donor's host become ready on the target's; they left `ready`.

        On one host that is a change of owner at once. Else their KV is copied, and the owner
        changes when the copy is done; rows for which the target's host has no room stay with the
        donor.
        """
        table = self.table
        if target.host is donor.host:
            self._adopt(rows, donor, target)
            if rows:
                out.append(act.Place(rows, target.id, 0))
            return
        moving: list[int] = []
        for position, row in enumerate(rows):
            if table.v_host_pages[row] > target.host.free:
                donor.ready.extend(rows[position:])
                break
            target.host.lease(table.v_host_pages[row])
            moving.append(row)
        if not moving:
            return
        copy_id = self._copy("migrate", donor)
        self.cluster.migrating[copy_id] = (moving, donor, target)
        target.arriving += len(moving)
        tokens = [table.v_host_valid[row] for row in moving]
        out.append(
            act.Copy(copy_id, moving, tokens, donor.id, target.id, "host", "host", "migrate")
        )

    def _adopt(self, rows: list[int], donor: Engine, target: Engine) -> None:
        table = self.table
        for row in rows:
            table.v_engine[row] = target.id
            table.v_rank[row] = 0
            table.v_migrations[row] += 1
            target.ready.append(row)
            if row in donor.doomed:
                target.doomed[row] = donor.doomed.pop(row)
                target.newly_doomed.add(row)
        target.dirty.update(range(len(target.ranks)))

    def _migrated(self, copy_id: int, arrived: bool, out: list[Action]) -> None:
        """A migration is over. Without a live target, or a copy, the rows are placed anew."""
        rows, donor, target = self.cluster.migrating.pop(copy_id)
        table = self.table
        target.arriving -= len(rows)
        if arrived and target.alive and not target.draining:
            for row in rows:
                donor.host.lease(-table.v_host_pages[row])
            self._adopt(rows, donor, target)
            out.append(act.Place(rows, target.id, 0))
            self._decide(target, out)
            return
        homeless = []
        for row in rows:
            target.host.lease(-table.v_host_pages[row])
            rank = donor.ranks[table.v_rank[row]]
            rank.release_host(row)
            rank.forget_kv(row)
            table.v_engine[row] = -1
            table.v_preemptions[row] += 1
            self.bodies.lost(row)
            code = donor.doomed.pop(row, None)
            if code is not None:
                self._end_row(row, code, out)
            else:
                homeless.append(row)
        if homeless:
            self._settle(sorted(homeless), out)

    def _hand_over(self, donor: Engine, out: list[Action]) -> None:
        """The rows that a slow engine yielded go to the engine that asked for them."""
        assert donor.heir is not None
        target = self.cluster.engines[donor.heir]
        donor.heir = None
        if not target.alive or target.draining:
            return
        rows = list(donor.ready)
        donor.ready.clear()
        self._migrate(rows, donor, target, out)
        if donor.num_waiting:
            self._steal_waiting(donor, donor.num_waiting, target, out)
        self._decide(target, out)
        if donor.ready:
            self._decide(donor, out)  # the other host had no room for these

    # -- pace -------------------------------------------------------------------------------------

    def _expect_pace(self, engine: Engine) -> None:
        """Note what the cost model expects of the first decode pass since the last turn."""
        advisor = self.cluster.advisor
        if advisor is None or engine.layout != "home":
            return
        rows = engine.num_running
        context = sum(
            sum(self.table.v_offset[row] for row in rank.running) for rank in engine.ranks
        ) + rows * (engine.q + 1)
        engine.turn_expected_ps = advisor.decode_ps(engine.id, rows, context)

    def _note_pace(self, engine: Engine) -> None:
        """Compare the decode passes since the last turn with what was expected of the first.

        Slowness is no event: it is inferred from durations, over passes and never over calls.
        """
        passes, spent_ps, expected_ps = (
            engine.turn_passes,
            engine.turn_ps,
            engine.turn_expected_ps,
        )
        engine.turn_passes = engine.turn_ps = engine.turn_expected_ps = 0
        if not passes or not expected_ps:
            return
        engine.slow = self.policy["placement"].is_slow(spent_ps // passes, expected_ps)
        if engine.slow:
            self.cluster.slow.add(engine.id)
        else:
            self.cluster.slow.discard(engine.id)

    def _try_switch(self, engine: Engine, draft: Draft, out: list[Action]) -> bool:
        layout = self.policy["tail"].layout(self.cluster, engine)
        if layout is None:
            return False
        rows = [row for rank in engine.ranks for row in rank.running]
        for rank in engine.ranks:
            draft.rank = rank
            for row in list(rank.running):
                draft.park(row)
        engine.switching = layout
        engine.decide_q = engine.q
        out.append(act.Switch(engine.id, engine.epoch + 1, layout, rows))
        return True
