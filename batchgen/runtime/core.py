"""The runtime: a synchronous state machine, `on(event, now) -> actions`. No I/O, clock or
randomness.

Engine level: finish the books of a step, ask the parts, emit the next step. Cluster level:
arrivals,
placement, stealing, tail, loss. Decisions belong to the parts; this module owns their order, the
page
books and the liveness of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchgen import actions as act
from batchgen import events as ev
from batchgen.actions import Action
from batchgen.coroutine import Bodies, BodyFactory
from batchgen.errors import IllegalTransition
from batchgen.memory.pool import Pool, pages_for
from batchgen.plan import Plan
from batchgen.policy.base import OrderPart
from batchgen.policy.presets import Policy
from batchgen.runtime.cluster import Advisor, Cluster
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine
from batchgen.runtime.rank import PageKeys, Rank
from batchgen.sequence import Status, Table
from batchgen.step import Step

MAX_PASSES = 4096
"""Longest step; any smaller limit gives the same decisions, so this only bounds array sizes."""

BODY = "body"
"""The reason with which a row ends whose body returned."""


class Runtime:
    """One policy at work on a plan. Feed it every event in order; carry out every action.

    reference: one pass per step and every rank asked at every decision point; the slow truth that
    coalesced stepping is tested against.
    page_keys: prefix keys of a row's full prompt pages; None switches the prefix index off.
    advisor: cost questions of the tail part. body_factory: bodies of one's own.
    """

    def __init__(
        self,
        table: Table,
        plan: Plan,
        policy: Policy,
        *,
        reference: bool = False,
        page_keys: PageKeys | None = None,
        advisor: Advisor | None = None,
        body_factory: BodyFactory | None = None,
    ) -> None:
        self.table = table
        self.plan = plan
        self.policy = policy
        self.page_keys = page_keys
        self.reference = reference
        self.max_passes = 1 if reference else MAX_PASSES
        self.bodies = Bodies(table, body_factory)
        hosts = [Pool(f"host {node}", pages) for node, pages in enumerate(plan.host_pages)]
        no_host = Pool("no host", 0)
        order = policy["order"]
        self._fifo = fifo = type(order).key is OrderPart.key
        engines = []
        for spec in plan.engines:
            host = hosts[spec.node] if spec.node < len(hosts) else no_host
            engine = Engine(
                spec,
                table,
                host,
                boundary=plan.boundary,
                token_budget=plan.token_budget,
                max_num_seqs=plan.max_num_seqs,
            )
            engine.ranks = [
                Rank(
                    spec.engine,
                    index,
                    table,
                    hbm_pages=spec.hbm_pages,
                    page_tokens=plan.page_tokens,
                    host=host,
                    lane_key=None if fifo else (lambda row: order.key(table, row)),
                    page_keys=page_keys,
                )
                for index in range(spec.num_ranks)
            ]
            for slot in ("recovery", "phase", "memory", "order", "admission", "batching"):
                engine.states[slot] = policy[slot].new_state()
            engines.append(engine)
        self.cluster = Cluster(table, engines, hosts, advisor)
        for slot in ("placement", "tail", "predictor"):
            self.cluster.states[slot] = policy[slot].new_state()
        self._streams = bool(getattr(policy["memory"], "streams", False))
        self._parts = [
            (policy[slot], slot)
            for slot in ("recovery", "phase", "memory", "order", "admission", "batching")
        ]
        self._whole_engine = [
            (part, slot) for part, slot in self._parts if _overrides(part, "decide_engine")
        ]
        self._memory = policy["memory"]
        self._after_memory = [
            (part, slot)
            for part, slot in self._parts
            if slot in ("order", "admission", "batching") and _overrides(part, "decide")
        ]
        self._before_memory = [
            (part, slot)
            for part, slot in self._parts
            if slot in ("recovery", "phase") and _overrides(part, "decide")
        ]
        self._next_copy = 0
        self._copies: dict[int, tuple[str, Engine]] = {}
        self._learns = _overrides(policy["predictor"], "on_completion")
        self._tail_active = _overrides(policy["tail"], "layout")
        self._steals = _overrides(policy["placement"], "steal")
        self._handlers: dict[type, Callable[[Any, list[Action]], None]] = {
            ev.StepDone: self._step_done,
            ev.Arrived: self._arrived,
            ev.InputClosed: self._input_closed,
            ev.Cancelled: self._cancelled,
            ev.SlotFree: self._slot_free,
            ev.CopiesDone: self._copies_done,
            ev.CopiesFailed: self._copies_failed,
            ev.LayoutReady: self._layout_ready,
            ev.LayoutFailed: self._layout_failed,
            ev.DeviceNotice: self._device_notice,
            ev.DeviceLost: self._device_lost,
            ev.DeviceBack: self._device_back,
            ev.RowFailed: self._row_failed,
            ev.PoolShort: self._pool_short,
            ev.Timer: self._timer,
            ev.PlanChanged: self._plan_changed,
        }
        self._now = 0

    # -- the interface ------------------------------------------------------------------------

    def on(self, event: ev.Event, now: int) -> list[Action]:
        """Account for one event at time `now` (ps) and return what to do, in order.

        Raises IllegalTransition when the event contradicts what was asked for.
        """
        out: list[Action] = []
        self._now = now
        self._handlers[type(event)](event, out)
        if self.bodies.ended_early:
            self._end_bodies(out)
        return out

    @property
    def unfinished(self) -> int:
        """Rows that arrived and have not ended."""
        return self.cluster.unfinished

    # -- cluster level --------------------------------------------------------------------------

    def _arrived(self, event: ev.Arrived, out: list[Action]) -> None:
        cluster = self.cluster
        cluster.unfinished += len(event.rows)
        rows = event.rows
        if cluster.ended_before_arrival:
            rows = [row for row in rows if row not in cluster.ended_before_arrival]
        self.policy["predictor"].on_arrival(self.table, rows, cluster.states["predictor"])
        self._settle(rows, out)

    def _settle(self, rows: list[int], out: list[Action]) -> None:
        """Give rows an owner, wake the owners that stand still, cut the steps that should know."""
        cluster, table = self.cluster, self.table
        if not cluster.alive():
            cluster.homeless.extend(rows)
            return
        batches: dict[tuple[int, int], list[int]] = {}
        for row, (engine_id, rank_index) in self.policy["placement"].place(cluster, rows):
            engine = cluster.engines[engine_id]
            smallest = max(engine.ranks[rank_index].pool.size, 0)
            if pages_for(table.known_tokens(row) + 1, self.plan.page_tokens) > smallest:
                self._fail_row(row, "capacity", out)
                continue
            batches.setdefault((engine_id, rank_index), []).append(row)
        woken: list[Engine] = []
        fifo = self._fifo
        for (engine_id, rank_index), placed in batches.items():
            engine = cluster.engines[engine_id]
            rank = engine.ranks[rank_index]
            was_empty = not rank.waiting
            for row in placed:
                table.v_engine[row] = engine_id
                table.v_rank[row] = rank_index
                rank.enqueue(row)
            cluster.total_waiting += len(placed)
            cluster.queue_grew(engine)
            engine.dirty.add(rank_index)
            out.append(act.Place(placed, engine_id, rank_index))
            if engine.inflight is None:
                if engine not in woken:
                    woken.append(engine)
            elif was_empty or not fifo:
                self._cut_if_open(engine, out)
        for engine in woken:
            self._decide(engine, out)

    def _cut_if_open(self, engine: Engine, out: list[Action]) -> None:
        """End the step in flight early if the parts would be asked at the next pass boundary."""
        step = engine.inflight
        if step is not None and step.n > 1 and engine.decide_q <= engine.q:
            out.append(act.Cut(engine.id))

    def _input_closed(self, event: ev.InputClosed, out: list[Action]) -> None:
        self.cluster.input_closed = True

    def _cancelled(self, event: ev.Cancelled, out: list[Action]) -> None:
        for row in event.rows:
            self._doom(row, "cancelled", out)

    def _row_failed(self, event: ev.RowFailed, out: list[Action]) -> None:
        self._doom(event.row, event.code, out)

    def _doom(self, row: int, code: str, out: list[Action]) -> None:
        """End a row as soon as nothing touches it: now if it waits, else at the next decision."""
        table, cluster = self.table, self.cluster
        if table.v_status[row] >= Status.DONE:
            return
        engine_id = table.v_engine[row]
        if engine_id < 0:
            if row in cluster.homeless:
                cluster.homeless.remove(row)
            else:
                cluster.ended_before_arrival.add(row)
            self._end_row(row, code, out)
            return
        engine = cluster.engines[engine_id]
        rank = engine.ranks[table.v_rank[row]]
        if rank._waits_here(row) and row not in engine.ready:
            rank.waiting -= 1
            cluster.total_waiting -= 1
            rank.release_host(row)
            self._end_row(row, code, out)
            # The row may have been a blocked head: what waits behind it gets its chance.
            engine.dirty.add(rank.index)
            if engine.inflight is None:
                self._decide(engine, out)
            else:
                self._cut_if_open(engine, out)
            return
        engine.doomed[row] = code
        engine.dirty.add(rank.index)
        engine.decide_q = min(engine.decide_q, engine.q)
        if engine.inflight is None:
            self._decide(engine, out)
        elif engine.inflight.n > 1:
            out.append(act.Cut(engine.id))

    def _end_row(self, row: int, code: str, out: list[Action]) -> None:
        """A row without pages ends: as its body wished, or without success."""
        if code == BODY:
            self.table.move(row, Status.DONE)
            self.cluster.unfinished -= 1
            out.append(act.Finished(row, code))
            self.bodies.finished(row)
        else:
            self._fail_row(row, code, out)

    def _end_bodies(self, out: list[Action]) -> None:
        """Rows whose body returned end, each as soon as nothing touches it."""
        while self.bodies.ended_early:
            self._doom(self.bodies.ended_early.pop(0), BODY, out)

    def _fail_row(self, row: int, code: str, out: list[Action]) -> None:
        self.table.move(row, Status.FAILED)
        self.cluster.unfinished -= 1
        out.append(act.Failed(row, code))
        self.bodies.finished(row)

    def _timer(self, event: ev.Timer, out: list[Action]) -> None:
        for engine in self.cluster.engines:
            if engine.inflight is None:
                self._decide(engine, out)

    def _plan_changed(self, event: ev.PlanChanged, out: list[Action]) -> None:
        for engine in self.cluster.engines:
            engine.token_budget = event.token_budget
            engine.max_num_seqs = event.max_num_seqs
            engine.dirty.update(range(len(engine.ranks)))
            if engine.inflight is None:
                self._decide(engine, out)
            elif engine.inflight.n > 1:
                out.append(act.Cut(engine.id))

    # -- devices --------------------------------------------------------------------------------

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

    # -- layouts --------------------------------------------------------------------------------

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

    # -- copies ---------------------------------------------------------------------------------

    def _copy(self, purpose: str, engine: Engine) -> int:
        copy_id = self._next_copy
        self._next_copy += 1
        self._copies[copy_id] = (purpose, engine)
        return copy_id

    def _copies_done(self, event: ev.CopiesDone, out: list[Action]) -> None:
        known = self._copies.pop(event.copy_id, None)
        if known is None:
            return  # the engine was lost meanwhile
        purpose, engine = known
        table = self.table
        if purpose == "checkpoint":
            rows = engine.outbound.pop(event.copy_id)
            for row in rows:
                rank = engine.ranks[table.v_rank[row]]
                table.v_host_valid[row] = table.v_computed[row]
                rank.release_hbm(row)
                engine.ready.append(row)
                engine.dirty.add(rank.index)
            out.append(act.Release(rows, engine.id, "hbm"))
        else:
            for row, rank in engine.inbound.pop(event.copy_id):
                rank.parked[row] = None
                engine.dirty.add(rank.index)
                self.bodies.resumed(row)
        if engine.inflight is None:
            self._decide(engine, out)

    def _copies_failed(self, event: ev.CopiesFailed, out: list[Action]) -> None:
        """Nothing of the batch arrived: the rows are prefilled again."""
        known = self._copies.pop(event.copy_id, None)
        if known is None:
            return
        purpose, engine = known
        if purpose == "checkpoint":
            pairs = [
                (row, engine.ranks[self.table.v_rank[row]])
                for row in engine.outbound.pop(event.copy_id)
            ]
        else:
            pairs = engine.inbound.pop(event.copy_id)
        for row, rank in pairs:
            rank.release_hbm(row)
            rank.release_host(row)
            rank.forget_kv(row)
            self.table.move(row, Status.INACTIVE)
            self.table.v_preemptions[row] += 1
            rank.enqueue(row, front=True)
            self.cluster.total_waiting += 1
            engine.dirty.add(rank.index)
            out.append(act.Release([row], engine.id, "hbm"))
            self.bodies.lost(row)
        if engine.inflight is None:
            self._decide(engine, out)

    # -- engine level: the end of a step ----------------------------------------------------------

    def _slot_free(self, event: ev.SlotFree, out: list[Action]) -> None:
        """Depth 1: a slot is free when its step is done, so there is nothing to do before."""

    def _return_host_lease(self, engine: Engine, used: int) -> None:
        if engine.host_leased or used:
            engine.host.lease(used - engine.host_leased)
            engine.host_leased = 0

    def _step_done(self, event: ev.StepDone, out: list[Action]) -> None:
        engine = self.cluster.engines[event.engine]
        step = engine.inflight
        if step is None or event.epoch != engine.epoch or event.q0 != step.q0:
            return  # a step of an epoch that is over
        if not 0 <= event.passes <= step.n:
            raise IllegalTransition(f"step {engine.id}:{step.q0} ran {event.passes} of {step.n}")
        engine.inflight = None
        q0, passes = event.q0, event.passes
        q1 = q0 + passes
        engine.q = q1
        table, dirty = self.table, engine.dirty
        host_used = 0
        for rank in engine.ranks:
            pages = rank.advance(q0, passes)
            if rank.streaming:
                host_used += pages
        self._return_host_lease(engine, host_used)
        if step.chunks and passes:
            has_host = engine.host.size > 0 and self._streams
            for row, start, size, last in step.chunks:
                rank = engine.ranks[table.v_rank[row]]
                dirty.add(rank.index)
                if last:
                    rank.complete_prompt(row, q1)
                    engine.announced.add(row)
                    if has_host and table.v_host_pages[row]:
                        table.v_host_valid[row] = start + size
                    self.bodies.prompt_done(row)
                else:
                    table.v_computed[row] = start + size * passes
        for row, offset, reason in event.finished:
            rank = engine.ranks[table.v_rank[row]]
            if row not in rank.running:
                raise IllegalTransition(f"{table.story(row)} finished but was not running")
            produced = table.v_offset[row] + q0 + offset + 1 - table.v_prompt[row] + 1
            rank.leave(row, q1)
            table.v_produced[row] = produced
            table.v_computed[row] = table.v_prompt[row] + produced - 1
            self._finish(engine, rank, row, reason, out)
            dirty.add(rank.index)
        if self.bodies.ended_early:
            for row in self.bodies.ended_early:
                if table.v_status[row] < Status.DONE:
                    engine.doomed.setdefault(row, BODY)
                    dirty.add(table.v_rank[row])
            self.bodies.ended_early.clear()
            engine.decide_q = min(engine.decide_q, q1)
        if event.ended_by != "failed":  # else the loss of the device follows
            self._decide(engine, out)

    def _finish(self, engine: Engine, rank: Rank, row: int, reason: str, out: list[Action]) -> None:
        rank.release_hbm(row)
        rank.release_host(row)
        engine.announced.discard(row)
        self.table.move(row, Status.DONE)
        self.cluster.unfinished -= 1
        if engine.doomed:
            engine.doomed.pop(row, None)
        out.append(act.Finished(row, reason))
        self.bodies.finished(row)
        if self._learns:
            self.policy["predictor"].on_completion(
                self.table, row, self.cluster.states["predictor"]
            )

    # -- engine level: the next step --------------------------------------------------------------

    def _decide(self, engine: Engine, out: list[Action]) -> None:
        """Ask the parts (at a decision point) and emit the engine's next step, if it has one."""
        if engine.inflight is not None or not engine.alive or engine.switching:
            return
        if engine.pool_debt:
            self._pay_pool_debt(engine)
        draft = Draft(engine, out, self.bodies)
        turn = self._takes_turn(engine)
        if turn and self._steals:
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

    def _emit_copies(self, engine: Engine, draft: Draft, out: list[Action]) -> None:
        if draft.suspended:
            copy_id = self._copy("checkpoint", engine)
            rows = [row for row, _ in draft.suspended]
            engine.outbound[copy_id] = rows
            tokens = [tokens for _, tokens in draft.suspended]
            out.append(
                act.Copy(copy_id, rows, tokens, engine.id, engine.id, "hbm", "host", "checkpoint")
            )
        if draft.restored:
            copy_id = self._copy("restore", engine)
            engine.inbound[copy_id] = list(draft.restored)
            rows = [row for row, _ in draft.restored]
            tokens = [self.table.v_computed[row] for row in rows]
            out.append(
                act.Copy(copy_id, rows, tokens, engine.id, engine.id, "host", "hbm", "restore")
            )

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


def _overrides(part: Any, method: str) -> bool:
    """Whether the part's class defines the method itself (parts that do not care are not
    called)."""
    from batchgen.policy import base, batching, placement, predictor, tail

    neutral = (
        base.EnginePart,
        base.OrderPart,
        base.Part,
        batching.BatchingPart,
        placement.PlacementPart,
        predictor.PredictorPart,
        tail.TailPart,
    )
    for cls in type(part).__mro__:
        if method in vars(cls):
            return cls not in neutral
    return False
