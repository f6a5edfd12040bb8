"""The next step of an engine: ask the parts in order, keep it alive, emit the step."""

from __future__ import annotations

from batchgen.actions import Action
from batchgen.errors import IllegalTransition
from batchgen.runtime.base import BODY, RuntimeBase
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine
from batchgen.runtime.rank import Rank
from batchgen.step import Step


class Stepping(RuntimeBase):
    """See the module."""

    def _decide(self, engine: Engine, out: list[Action]) -> None:
        """Ask the parts (at a decision point) and emit the engine's next step, if it has one."""
        if engine.inflight is not None or not engine.alive or engine.switching:
            return
        if engine.pool_debt:
            self._pay_pool_debt(engine)
        if engine.newly_doomed:
            engine.newly_doomed.clear()
            engine.decide_q = min(engine.decide_q, engine.q)
        draft = Draft(engine, out, self.bodies)
        turn = self._takes_turn(engine)
        if turn and self._steals:
            self._note_pace(engine)
            self._feed(engine, out)
        waiting_before = engine.num_waiting
        asked = engine.q >= engine.decide_q
        passes = self._compose(engine, draft)
        if not passes and not asked:
            # Nothing left to run before the boundary: decide now.
            engine.decide_q = engine.q
            turn = True
            passes = self._compose(engine, draft)
        ended = 0
        while not passes:
            if len(draft.lost) > ended:
                # A row ended in this very draft: ask again before anybody is called blocked.
                ended = len(draft.lost)
                engine.decide_q = engine.q
            elif not self._unblock(engine, draft):
                break
            passes = self._compose(engine, draft)
        lost = len(draft.lost)
        if lost:
            self.cluster.unfinished -= lost
        self.cluster.total_waiting += engine.num_waiting - waiting_before
        self._emit_copies(engine, draft, out)
        if engine.heir is not None and not (passes or engine.outbound):
            self._hand_over(engine, out)
        if engine.draining:
            heirs, orphans = self._bequeath(engine)
            self._evacuate(engine, orphans, out)
            for heir in heirs:
                self._decide(heir, out)
        if passes:
            tail = self._tail_active and len(engine.ranks) > 1
            if tail and turn and not draft.chunks and self._try_switch(engine, draft, out):
                return
            if (tail or self._steals) and engine.phase == "mixed":
                passes = min(passes, engine.turn_q - engine.q)
            self._emit_step(engine, draft, passes, out)

    @staticmethod
    def _takes_turn(engine: Engine) -> bool:
        """Whether the engine looks beyond itself now (stealing, tail).

        It does so at its boundaries. Where parts are asked at every pass, that is every `boundary`
        passes, or when nothing runs: steps of any length must find the same passes.
        """
        q = engine.q
        if engine.phase != "mixed":
            return q >= engine.decide_q
        if q < engine.turn_q and engine.num_running + engine.num_prefilling:
            return False
        engine.turn_q = q + engine.boundary
        return True

    def _compose(self, engine: Engine, draft: Draft) -> int:
        """Let the parts write the draft; returns for how many passes it stands (0: nothing to
        run)."""
        q = engine.q
        if q >= engine.decide_q:
            if engine.doomed:
                self._drop_doomed(engine, draft)
            if self._streams and engine.host.size:
                for rank in engine.ranks:
                    if not (rank.streaming or rank.running or rank.parked or rank.prefilling):
                        rank.streaming = True
            for part, slot in self._whole_engine:
                if slot != "admission" or not engine.draining:
                    part.decide_engine(engine, draft, engine.states[slot])
            if self.reference:
                engine.dirty.update(range(len(engine.ranks)))
            if engine.dirty:
                asked = sorted(engine.dirty)
                engine.dirty = set()
                for index in asked:
                    self._ask(engine, engine.ranks[index], draft)
        # A pool that still owes pages pays after every pass in which some came free.
        passes = 1 if engine.pool_debt else self.max_passes
        if engine.decide_q > q:
            passes = min(passes, engine.decide_q - q)
        runs = bool(draft.chunks)
        for rank in engine.ranks:
            if rank.limit_q <= q:
                # Past its horizon: pages first, then whatever the parts said.
                self._ask(engine, rank, draft)
            if rank.running:
                runs = True
            passes = min(passes, rank.limit_q - q)
        for _, _, _, last in draft.chunks:
            if last:
                passes = min(passes, 1)
        return passes if (runs or draft.chunks) and passes > 0 else 0

    def _ask(self, engine: Engine, rank: Rank, draft: Draft) -> None:
        q, states = engine.q, engine.states
        draft.begin(rank)
        for part, slot in self._before_memory:
            part.decide(engine, draft, states[slot])
        self._memory.decide(engine, draft, states["memory"])
        draft.measure()
        for part, slot in self._after_memory:
            if slot != "admission" or not engine.draining:
                part.decide(engine, draft, states[slot])
        horizon = min(draft.passes, rank.growth.passes_that_fit(q, rank.pool.free))
        for part, slot in self._parts:
            horizon = min(horizon, part.horizon(engine, draft, states[slot]))
        rank.limit_q = q + horizon
        if rank.prefix is not None:
            rank.shrink_cache()
        if rank.prefilling:
            engine.dirty.add(rank.index)

    def _drop_doomed(self, engine: Engine, draft: Draft) -> None:
        for row, code in list(engine.doomed.items()):
            rank = engine.ranks[self.table.v_rank[row]]
            draft.begin(rank)
            if row in rank.running or row in rank.prefilling or row in rank.parked:
                if code == BODY:
                    draft.finish(row, code)
                else:
                    draft.fail(row, code)
            elif row in engine.ready:
                engine.ready.remove(row)
                rank.release_host(row)
                self._end_row(row, code, draft.actions)
            elif rank._waits_here(row):
                rank.waiting -= 1
                rank.release_host(row)
                self._end_row(row, code, draft.actions)
            else:
                continue  # in a copy: try again at the next decision
            del engine.doomed[row]

    def _unblock(self, engine: Engine, draft: Draft) -> bool:
        """Liveness: nothing runs. If nothing is on its way either, a blocked head fails by name."""
        if draft.restored or draft.suspended or engine.inbound or engine.outbound:
            return False
        if engine.num_prefilling or engine.draining:
            return False
        if engine.num_parked:
            # The parts paused everybody for prompts that then did not come.
            engine.phase = "decode"
            engine.decide_q = engine.q + engine.boundary
            for rank in engine.ranks:
                draft.begin(rank)
                for row in list(rank.parked):
                    draft.resume(row)
                rank.limit_q = engine.q
            return True
        if engine.ready:
            row = engine.ready.popleft()
            rank = engine.ranks[self.table.v_rank[row]]
            rank.release_host(row)
            self._fail_row(row, "capacity", draft.actions)
            return True
        for rank in engine.ranks:
            if rank.waiting:
                head = rank.lane.peek()
                if head is None:
                    raise IllegalTransition(f"{rank.pool.name} counts {rank.waiting} waiting rows")
                draft.begin(rank)
                draft.fail_waiting(head, "capacity")
                engine.dirty.add(rank.index)
                engine.decide_q = engine.q
                return True
        return False

    def _emit_step(self, engine: Engine, draft: Draft, passes: int, out: list[Action]) -> None:
        q = engine.q
        streaming = False
        if self._streams:
            passes = self._lease_host(engine, passes)
            streaming = engine.host.size > 0 and any(rank.streaming for rank in engine.ranks)
        # A finish may also change which cached prefix pages survive the growth that follows it.
        first = passes > 1 and (
            engine.ranks[0].prefix is not None or self.policy["batching"].finish_matters(engine)
        )
        joined: list[int] = []
        left: list[int] = []
        if engine.touched:
            joined, left = self._announce(engine)
        step = Step(
            engine.id,
            engine.epoch,
            q,
            passes,
            "first" if first else "n",
            joined,
            left,
            draft.chunks,
            "host" if streaming else "",
        )
        if self._steals and not draft.chunks and not engine.turn_expected_ps:
            self._expect_pace(engine)
        engine.inflight = step
        out.append(step)

    def _announce(self, engine: Engine) -> tuple[list[int], list[int]]:
        """Net changes of the running set since the last step: (joined, left)."""
        table, announced = self.table, engine.announced
        joined, left = [], []
        for row in engine.touched:
            running = (
                table.v_engine[row] == engine.id and row in engine.ranks[table.v_rank[row]].running
            )
            if running and row not in announced:
                announced.add(row)
                joined.append(row)
            elif not running and row in announced:
                announced.discard(row)
                left.append(row)
        engine.touched.clear()
        return joined, left

    def _lease_host(self, engine: Engine, passes: int) -> int:
        """Lease the host pages that streaming needs; returns for how many passes there are enough.

        A rank that lacks them for the very next pass stops streaming.
        """
        q, host = engine.q, engine.host
        need = 0
        for rank in engine.ranks:
            if rank.streaming and rank.growth.num_rows:
                pages = rank.growth.growth(q, 1)
                if need + pages > host.free:
                    rank.stop_streaming(q)
                else:
                    need += pages
        streams = [r.growth for r in engine.ranks if r.streaming and r.growth.num_rows]
        if passes > 1 and streams:
            enough, passes = 1, passes + 1
            while passes - enough > 1:
                middle = (enough + passes) // 2
                if sum(growth.growth(q, middle) for growth in streams) <= host.free:
                    enough = middle
                else:
                    passes = middle
            passes = enough
            need = sum(growth.growth(q, passes) for growth in streams)
        if need:
            host.lease(need)
            engine.host_leased = need
        return passes
