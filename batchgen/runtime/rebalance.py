"""What an engine does beyond itself at its turns: take work from others, switch its layout."""

from __future__ import annotations

from batchgen import actions as act
from batchgen.actions import Action
from batchgen.runtime.base import RuntimeBase
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine


class Rebalance(RuntimeBase):
    """See the module."""

    def _feed(self, engine: Engine, out: list[Action]) -> None:
        """A hungry engine (nothing waits, nothing is ready) may steal waiting rows."""
        cluster = self.cluster
        if not cluster.total_waiting or engine.ready or engine.inbound or engine.draining:
            return
        if engine.num_waiting or engine.num_prefilling:
            return
        found = self.policy["placement"].steal(cluster, engine)
        if found is None:
            return
        donor, count = found
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
        cluster.queue_grew(engine)

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
