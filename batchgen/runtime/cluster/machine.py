"""The cluster machine: input, placement, the agenda, and what engines report upwards.

It owns what lies between engines: `transfers` (rows with KV), `hunger` (rows that move to idle
engines), `members` (which engines take rows), `orders` (rows that are to end), `pace` (slowness),
`loads`. It reads engines and never writes them: it calls the engine's few methods and functions
(`engine.lane`, `engine.copies`) and puts the engine on the agenda.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.bodies import Bodies
from batchgen.coroutine import Outcome
from batchgen.runtime.cluster import tail
from batchgen.runtime.cluster.hunger import Hunger
from batchgen.runtime.cluster.loads import Loads
from batchgen.runtime.cluster.members import Members
from batchgen.runtime.cluster.obey import Obey
from batchgen.runtime.cluster.orders import Orders
from batchgen.runtime.cluster.pace import Pace
from batchgen.runtime.cluster.transfer import Transfers
from batchgen.runtime.engine.lane import offer, replan
from batchgen.runtime.engine.machine import EngineMachine
from batchgen.sequence import NO_ENGINE, Status

if TYPE_CHECKING:
    from batchgen.plan import Plan
    from batchgen.policy.compiled import Compiled
    from batchgen.runtime.advisor import Advisor
    from batchgen.runtime.engine.rank import PageKeys
    from batchgen.sequence import Table


class ClusterMachine:
    """See the module. `out` collects the actions of the event at hand, `now` is its time."""

    def __init__(
        self,
        table: Table,
        plan: Plan,
        policy: Compiled,
        *,
        page_keys: PageKeys | None,
        advisor: Advisor | None,
        bodies: Bodies | None,
        max_passes: int,
        decide: Callable[[EngineMachine, list[act.Action]], None],
    ) -> None:
        self.table, self.plan, self.policy, self.advisor = table, plan, policy, advisor
        self.decide = decide  # the engine's verb, given here so that files need not form a circle
        self.out: list[act.Action] = []
        self.now = 0
        self.bodies = bodies
        self.obey = Obey(self, bodies) if bodies is not None else None
        self.predictions = policy.predictor.new_state()
        self.engines = [
            EngineMachine(
                spec, plan, table, policy, self, page_keys=page_keys, max_passes=max_passes
            )
            for spec in plan.engines
        ]
        self.takers: list[EngineMachine] = []
        self.taker_ids: frozenset[int] = frozenset()
        self.decoders: list[EngineMachine] = []
        self.agenda: dict[int, None] = {}  # engines to kick after the event
        self.kicking = False  # several of them, one after the other
        self.homeless: list[
            int
        ] = []  # rows that wait for any engine to come alive, or to be placed
        self.leaving: dict[int, None] = {}  # engines whose waiting rows should wait elsewhere
        self.asks_again: list[tuple[EngineMachine, int]] = []
        self.awaited: dict[int, int] = {}  # row whose end brings a new order -> engine
        self.unfinished = 0
        self.placed_rows = 0  # without KV
        self.moved_rows = 0  # with it
        self.input_closed = False
        self._timers: dict[int, tuple[str, int]] = {}
        self._next_timer = 0
        self._work: Callable[[Table, int], int] = policy.placement.work
        self.loads = Loads([spec.num_ranks for spec in plan.engines])
        self.hunger = Hunger(self)
        self.orders = Orders(self)
        self.transfers = Transfers(self)
        self.pace = Pace(self)
        self.members = Members(self)
        several = policy.steals and len(self.engines) > 1
        self.looks = several or (policy.partitions and advisor is not None)

    # -- input and placement ----------------------------------------------------------------------

    @property
    def may_come(self) -> bool:
        """Whether rows may still arrive."""
        return not self.input_closed

    def arrive(self, rows: list[int]) -> None:
        if self.orders.ended_before:
            rows = [row for row in rows if row not in self.orders.ended_before]
        self.unfinished += len(rows)
        self.policy.predictor.on_arrival(self.table, rows, self.predictions)
        self.settle(rows)

    def settle(self, rows: Sequence[int]) -> None:
        """Rows without KV get an engine; without any alive they wait for one."""
        if not self.takers:
            self.homeless.extend(rows)
            return
        for engine in self.pace.take_due(len(rows)):
            self._try(engine, rows[-1])
            rows = rows[:-1]
        slots: dict[tuple[int, int], list[int]] = {}
        for row, slot in self.policy.placement.place(self, rows):
            slots.setdefault(slot, []).append(row)
        self.placed_rows += len(rows)
        for (index, rank), placed in slots.items():
            engine = self.engines[index]
            self.loads.add(index, rank, sum(map(self.work, placed)))
            offer(engine, placed, rank)
            self.hunger.fed(engine)
            self.hunger.waiting_grew(engine)
            self.agenda[index] = None
            self.out.append(act.Place(placed, index))

    def _try(self, engine: EngineMachine, row: int) -> None:
        """A row runs on a slow engine, which shows its pace with it."""
        offer(engine, [row])
        engine.look_now()
        self.loads.add(engine.id, self.table.v_rank[row], self.work(row))
        self.hunger.fed(engine)
        self.agenda[engine.id] = None
        self.out.append(act.Place([row], engine.id))

    def make_homeless(self, row: int) -> None:
        """A row without KV and without an engine looks for one after this event."""
        owner = self.table.v_engine[row]
        self.table.v_engine[row] = NO_ENGINE
        self.table.v_status[row] = Status.INIT
        self.homeless.append(row)
        if owner >= 0:
            self.orders.follow((row,), self.engines[owner])

    def too_large(self, engine: EngineMachine, row: int, pages: int, size: int) -> None:
        """Upcall: the row can never fit on this engine; it fails by name if it fits nowhere."""
        for other in self.takers:
            if other is not engine and other.roomiest >= pages:
                self.moved([row], engine)
                offer(other, [row])
                self.loads.add(other.id, self.table.v_rank[row], self.work(row))
                self.orders.follow((row,), engine)
                self.hunger.waiting_grew(other)
                self.agenda[other.id] = None
                return
        tokens = self.table.known_tokens(row)
        page = self.plan.page_tokens
        why = f"{tokens} tokens and the next need {pages} pages of {page}, a rank has {size}"
        self.end_early(engine, row, "fail", "capacity", why)

    def work(self, row: int) -> int:
        """Work of a row in the placement part's units; 0 where it has none."""
        return self._work(self.table, row)

    def moved(self, rows: Sequence[int], source: EngineMachine) -> None:
        """Rows leave an engine by the cluster's hand."""
        for row in rows:
            self.loads.add(source.id, self.table.v_rank[row], -self.work(row))

    def arrived_at(self, rows: Sequence[int], target: EngineMachine) -> None:
        """Waiting rows of another engine came to this one."""
        for row in rows:
            self.table.v_migrations[row] += 1
            self.loads.add(target.id, self.table.v_rank[row], self.work(row))

    # -- upcalls of engines -----------------------------------------------------------------------

    def queue_grew(self, engine: EngineMachine) -> None:
        """A row came back to a lane: somebody may be hungry for it; it does not stay where rows
        leave."""
        if engine.draining or engine.id in self.members.slow:
            self.leaving[engine.id] = None
        if self.policy.steals or self.policy.partitions:
            self.hunger.waiting_grew(engine)

    def ended(self, engine: EngineMachine, row: int, reason: str) -> None:
        """A row has ended as it should."""
        self.unfinished -= 1
        if self.obey is not None and row in self.obey.broken:
            self.table.v_status[row] = Status.FAILED
            self.out.append(act.Failed(row, "body", self.obey.broken.pop(row)))
        else:
            self.out.append(act.Finished(row, reason))
        if engine.orders:
            engine.take_order(row)
        if self.obey is not None:
            self.obey.forget(row)
        if self.awaited:
            self._awaited_ended(row, well=True)
        if self.policy.learns:
            self.policy.predictor.on_completion(self.table, row, self.predictions)

    def end_early(
        self, engine: EngineMachine | None, row: int, what: str, code: str, why: str
    ) -> None:
        """A row without pages ends by an order, or because it can never run."""
        self.unfinished -= 1
        if what == "finish":
            self.table.v_status[row] = Status.DONE
            self.out.append(act.Finished(row, code))
        else:
            self.table.v_status[row] = Status.FAILED
            self.out.append(act.Failed(row, code, why))
        if engine is not None:
            engine.take_order(row)
        if self.obey is not None:
            self.obey.forget(row)
        if self.awaited:
            self._awaited_ended(row, well=what == "finish")

    def _awaited_ended(self, row: int, *, well: bool) -> None:
        """When the last row that an order waited for has ended, the rest is arranged anew."""
        owner = self.awaited.pop(row, -1)
        if owner >= 0 and replan(self.engines[owner], row, well=well):
            self.agenda[owner] = None

    def look(self, engine: EngineMachine) -> None:
        """Upcall at an engine's boundary: its tail, its pace."""
        if self.policy.partitions and self.advisor is not None:
            tail.look(self, engine)
        if self.pace.watches and engine.switch_to is None and not self.policy.static:
            engine.time_pass(engine.q)

    def undo(self, engine: EngineMachine) -> None:
        """Upcall: rows wait at an engine whose layout was made for a tail."""
        tail.undo(engine)

    def start_body(self, engine: EngineMachine, row: int) -> None:
        assert self.obey is not None
        self.obey.start(engine, row)

    def tell_body(self, engine: EngineMachine, row: int, outcome: Outcome) -> None:
        if self.obey is not None:
            self.obey.tell(engine, row, outcome)

    def stage_ended(self, engine: EngineMachine, row: int, reason: str, *, in_doubt: bool) -> str:
        assert self.obey is not None
        return self.obey.stage_ended(engine, row, reason, in_doubt=in_doubt)

    def sleep(self, engine: EngineMachine, row: int) -> None:
        assert self.obey is not None
        self.obey.sleep(engine, row)

    def lost_asleep(self, row: int) -> None:
        """Upcall: a row that waits for a timer is about to lose its KV."""
        assert self.obey is not None
        self.obey.lost_asleep(row)

    # -- timers and the agenda --------------------------------------------------------------------

    def timer(self, meaning: tuple[str, int]) -> int:
        """A new timer; `meaning` is ("row", row) or ("probe", engine)."""
        self._next_timer += 1
        self._timers[self._next_timer] = meaning
        return self._next_timer

    def timer_rang(self, timer_id: int) -> None:
        kind, number = self._timers.pop(timer_id, ("", 0))
        if kind == "row" and self.obey is not None:
            self.obey.woken(number)
        elif kind == "probe":
            self.pace.woken(self.engines[number])

    def finish_agenda(self) -> None:
        """After an event: hungry engines are fed, engines that may have more to do are kicked."""
        while (
            self.agenda
            or self.hunger.later
            or self.homeless
            or self.orders.later
            or self.asks_again
            or self.leaving
        ):
            if self.leaving:
                leaving, self.leaving = self.leaving, {}
                for index in leaving:
                    self.members.move_waiting(self.engines[index])
            if self.asks_again:
                again, self.asks_again = self.asks_again, []
                for source, row in again:
                    if self.table.v_status[row] in (Status.FROZEN, Status.HOST):  # not ended since
                        self.transfers.look_for_homes(source, [row])
            if self.orders.later:
                orders, self.orders.later = self.orders.later, []
                for row, order in orders:
                    self.orders.give(row, order)
            if self.homeless:
                if self.takers:
                    homeless, self.homeless = self.homeless, []
                    self.settle(homeless)
                elif not (self.agenda or self.hunger.later):
                    return
            if self.agenda:
                agenda, self.agenda = self.agenda, {}
                self.kicking = len(agenda) > 1
                for index in agenda:
                    self.engines[index].kick(self.out)
                self.kicking = False
            elif self.hunger.later:
                self.hunger.feed_all()
