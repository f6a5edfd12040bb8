"""Bodies of one's own: what they ask for is obeyed here. Without a body factory nothing of this
runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.bodies import Bodies
from batchgen.coroutine import (
    BodyError,
    Decode,
    End,
    Extend,
    Outcome,
    Request,
    Wait,
)
from batchgen.runtime.engine.lane import enqueue
from batchgen.sequence import Status
from batchgen.units import to_s

if TYPE_CHECKING:
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine, Order

BODY = "body"
"""The reason with which a row ends whose body ended it, and the code of one whose body failed."""

LATEST_PS = 100 * 24 * 3600 * 1_000_000_000_000
"""No wait may end later than after 100 days of the run's clock: int64 picoseconds end after 106."""
MOST_WAITS, LEAST_PS = 1000, 1_000_000_000
"""So many waits in a row, with no token between and together shorter than a millisecond, and the
row fails: a body that waits for nothing would keep the clock where it is, for ever."""

_NOTHING = ("", "", "")


class Obey:
    """Carries out what bodies ask for."""

    def __init__(self, cluster: ClusterMachine, bodies: Bodies) -> None:
        self._cluster = cluster
        self._bodies = bodies
        self._delays: dict[int, int] = {}  # row that is to sleep -> ps
        self._ended: dict[int, str] = {}  # sleeping row whose generation has ended -> its reason
        self._waits: dict[int, tuple[int, int, int]] = {}  # row -> its tokens, waits since, ps
        self._lost: dict[int, int] = {}  # sleeping row -> tokens whose KV it has lost
        self.broken: dict[int, str] = {}  # row whose body failed when it ended -> why

    def start(self, engine: EngineMachine, row: int) -> None:
        """The row was admitted."""
        try:
            self._go_on(engine, row, self._bodies.start(row))
        except BodyError as error:
            self._order(engine, row, ("fail", BODY, str(error)))

    def tell(self, engine: EngineMachine, row: int, outcome: Outcome) -> None:
        """Something happened to a row that goes on. `engine` decides next in any case."""
        if self._cluster.table.v_status[row] >= Status.DONE:
            return
        try:
            self._go_on(engine, row, self._bodies.resume(row, outcome))
        except BodyError as error:
            self._order(engine, row, ("fail", BODY, str(error)))

    def _go_on(self, engine: EngineMachine, row: int, request: Request) -> None:
        if isinstance(request, End):
            self._order(engine, row, ("finish", BODY, ""))
        elif isinstance(request, Wait):
            self._note_wait(row, request)
            self._order(engine, row, ("sleep", "", ""))
        elif row in self._delays and self._cluster.table.v_status[row] != Status.SLEEPING:
            self._order(engine, row, ("sleep", "", ""))  # it gave way before

    def _order(self, engine: EngineMachine, row: int, order: Order) -> None:
        if self._cluster.table.v_engine[row] == engine.id:
            engine.order(row, order)
        else:  # it is elsewhere by now, or nowhere
            self._cluster.orders.later.append((row, order))

    # -- the end of a generation ------------------------------------------------------------------

    def stage_ended(self, engine: EngineMachine, row: int, reason: str, *, in_doubt: bool) -> str:
        """The row's generation ended: "" when it has no more to do, else "goes on" or "sleeps"."""
        try:
            request = self._bodies.resume(row, Outcome.FINISHED)
            waited = self._delays.pop(row, None) is not None
            if isinstance(request, Wait):
                self._note_wait(row, request)
        except BodyError as error:
            self.broken[row] = str(error)
            return ""
        if waited and engine.orders.get(row, _NOTHING)[0] == "sleep":
            engine.take_order(row)  # it was to sleep, and wants something else now
        if isinstance(request, Extend):
            if not self._extend(row, request):
                return ""
            if not in_doubt:
                engine.will_extend(row)
            return "goes on"
        if isinstance(request, Wait):
            self._ended[row] = reason
            self._lie_down(engine, row)
            if not in_doubt:
                engine.fell_asleep(row)
            return "sleeps"
        return ""

    def _extend(self, row: int, request: Extend) -> bool:
        """Known tokens grow; False when the row would outgrow the model's context."""
        cluster, table = self._cluster, self._cluster.table
        prompt = table.v_prompt[row] + request.count
        budget = table.v_produced[row] + request.budget
        if prompt + budget > cluster.plan.max_context:
            self.broken[row] = (
                f"a follow-up of {request.count} tokens and {request.budget} of budget would make "
                f"{prompt + budget} tokens, the model takes {cluster.plan.max_context}"
            )
            return False
        table.v_prompt[row] = prompt
        table.v_budget[row] = budget
        table.v_stage[row] += 1
        cluster.out.append(act.Extend(row, request.count, budget))
        return True

    # -- sleep ------------------------------------------------------------------------------------

    def sleep(self, engine: EngineMachine, row: int) -> None:
        """The row has left the running set for its sleep."""
        self._lie_down(engine, row)

    def _note_wait(self, row: int, request: Wait) -> None:
        """The row is to sleep so long. Raises BodyError for a wait that would stop the run."""
        delay_ps, produced = request.delay_ps, self._cluster.table.v_produced[row]
        if self._cluster.now + delay_ps > LATEST_PS:
            raise BodyError(
                f"its body waits {to_s(delay_ps):g} s at {to_s(self._cluster.now):g} s of the run; "
                f"a wait ends by {to_s(LATEST_PS):g} s (100 days)"
            )
        known, count, total_ps = self._waits.get(row, (-1, 0, 0))
        if known != produced or total_ps >= LEAST_PS:
            count = total_ps = 0
        if count >= MOST_WAITS:
            raise BodyError(
                f"its body waited {MOST_WAITS} times with no token between, less than a "
                "millisecond in all; wait longer, decode or end"
            )
        self._waits[row] = (produced, count + 1, total_ps + delay_ps)
        self._delays[row] = delay_ps

    def _lie_down(self, engine: EngineMachine, row: int) -> None:
        cluster = self._cluster
        timer = cluster.timer(("row", row))
        delay_ps = self._delays.pop(row)
        cluster.out.append(act.Wake(timer, cluster.now + delay_ps, row, delay_ps))

    def lost_asleep(self, row: int) -> None:
        """Its KV will be gone. Whether that is computed again is known when it wakes."""
        self._lost[row] = self._lost.get(row, 0) + self._cluster.table.v_computed[row]

    def woken(self, row: int) -> None:
        """The row's time has come."""
        cluster, table = self._cluster, self._cluster.table
        if table.v_status[row] != Status.SLEEPING:
            return
        reason = self._ended.pop(row, "")
        try:
            request = self._bodies.resume(row, Outcome.WOKEN)
            if isinstance(request, Wait):
                self._note_wait(row, request)
        except BodyError as error:
            cluster.orders.end_sleeping(row, ("fail", BODY, str(error)))
            return
        if isinstance(request, Wait):
            if reason:
                self._ended[row] = reason
            engine = cluster.engines[max(table.v_engine[row], 0)]
            self._lie_down(engine, row)
        elif isinstance(request, End) or (isinstance(request, Decode) and reason):
            cluster.orders.end_sleeping(row, ("finish", reason or BODY, ""))
        elif isinstance(request, Extend) and not self._extend(row, request):
            cluster.orders.end_sleeping(
                row, ("fail", "context_length_exceeded", self.broken.pop(row))
            )
        else:
            self._rise(row)

    def _rise(self, row: int) -> None:
        """It goes on: with its KV where it lay, else first in a lane."""
        cluster, table = self._cluster, self._cluster.table
        owner = table.v_engine[row]
        engine = cluster.engines[owner] if owner >= 0 else None
        table.v_recomputed[row] += self._lost.pop(row, 0)
        if engine is not None and engine.alive:
            rank = engine.ranks[table.v_rank[row] % len(engine.ranks)]
            if row in rank.held:
                engine.goes_on(row)
            else:
                enqueue(engine, row, rank, front=True)
                cluster.hunger.waiting_grew(engine)
            cluster.agenda[engine.id] = None
        else:
            cluster.make_homeless(row)

    def forget(self, row: int) -> None:
        """The row has ended."""
        self._bodies.forget(row)
        self._ended.pop(row, None)
        self._delays.pop(row, None)
        self._waits.pop(row, None)
        self._lost.pop(row, None)
