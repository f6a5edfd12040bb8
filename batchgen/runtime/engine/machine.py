"""The engine machine: one engine's ranks, pages, host share, lanes, sets and launched step.

Only files of this folder write them. This one holds the state, the small moves that every concern
shares, and the calls of the cluster about the engine itself; those about its rows are in `lane` and
`copies`. Calls of the cluster never decide: it puts the engine on its agenda and `kick`s it after
the event. The verbs are files too: `landing` (what passes did), `decide` (the next step),
`granting` and `intake` (who gets pages), `giving` (who gives them back), `leaving` (loss and
layouts), `streams`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.memory.pool import GrowthHistogram
from batchgen.runtime.advisor import HOME, Offer
from batchgen.runtime.engine.lane import make_lanes
from batchgen.runtime.engine.rank import PageKeys, Rank
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.plan import EngineSpec, Plan
    from batchgen.policy.compiled import Compiled
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.sequence import Table
    from batchgen.step import Step

Order = tuple[str, str, str]
"""What is to become of a row at the next decision: ("fail" | "finish", code, why), or ("sleep", "",
ps)."""


class EngineMachine:
    """See the module. Parts read it; the attributes without underscore are theirs to read."""

    __slots__ = (
        "alive",
        "arrived",
        "asked",
        "begin_pages",
        "boundary",
        "doubt",
        "draining",
        "epoch",
        "extending",
        "flying",
        "freed",
        "freezing",
        "freezing_share",
        "granted",
        "had",
        "home_pages",
        "home_ranks",
        "host_size",
        "host_used",
        "id",
        "joined",
        "k",
        "lag",
        "launched",
        "layout",
        "left",
        "left_since",
        "look_q",
        "max_num_seqs",
        "max_passes",
        "node",
        "num_inbound",
        "num_outbound",
        "once",
        "open",
        "orders",
        "page_keys",
        "page_tokens",
        "pauses",
        "peak_pages",
        "phases",
        "policy",
        "prefill",
        "previous",
        "probe",
        "prompts_told",
        "q",
        "ranks",
        "ready",
        "requests",
        "role",
        "seats",
        "settled",
        "sleeping",
        "stream_growth",
        "stream_used",
        "streaming",
        "switch_failed",
        "switch_to",
        "switching",
        "table",
        "token_budget",
        "told",
        "turn_every",
        "turn_q",
        "up",
        "urgent",
        "verdicts",
    )

    def __init__(
        self,
        spec: EngineSpec,
        plan: Plan,
        table: Table,
        policy: Compiled,
        up: ClusterMachine,
        *,
        page_keys: PageKeys | None,
        max_passes: int,
    ) -> None:
        self.id, self.node, self.role = spec.engine, spec.node, spec.role
        self.table, self.policy, self.up = table, policy, up
        self.page_keys = page_keys
        self.page_tokens = plan.page_tokens
        self.boundary = plan.boundary
        self.phases = policy.phases and (spec.num_ranks > 1 or not policy.lockstep_only)
        self.pauses = policy.pauses
        self.turn_every = plan.boundary if self.phases else 1
        self.limit(plan.token_budget, plan.max_num_seqs)
        self.lag, self.max_passes = plan.lag, max_passes
        self.home_ranks, self.home_pages = spec.num_ranks, spec.hbm_pages
        self.host_size = spec.host_pages
        self.ranks = [self._rank(index, spec.hbm_pages) for index in range(spec.num_ranks)]
        # Host pages: of rows that are there (a claim), and of streams (they yield to claims).
        self.host_used = 0
        self.stream_used = 0
        self.streaming = False
        self.stream_growth = GrowthHistogram(plan.page_tokens)
        self.q = self.k = 0  # passes, and those in which rows of some rank decoded
        self.epoch = 0
        self.layout = HOME
        self.switch_to: Offer | None = None  # to begin when nothing is in flight
        self.switching: Offer | None = None  # the backend prepares it
        self.switch_failed = False
        self.alive, self.draining = True, False
        self.prefill = False  # in a prefill phase
        self.turn_q = 0  # the next boundary
        self.look_q = 0  # when it next looks beyond itself (tail, pace)
        self.probe: tuple[int, int] | None = None  # (pass, expected ps) of a pass that is timed
        self.urgent = False  # something outside cannot wait for the boundary
        self.launched: Step | None = None  # the newest step, while its end is unknown
        self.previous: Step | None = None  # the one before it
        self.flying = False  # a pass may be in flight
        self.joined: dict[int, None] = {}  # changes of the running set since the last step
        self.left: dict[int, None] = {}
        self.left_since: dict[int, None] = {}  # rows that left since the last report
        self.doubt: list[tuple[int, str]] = []  # rows that left; outcome of their last pass unknown
        self.prompts_told: list[int] = []  # bodies to be told with the next report
        self.orders: dict[int, Order] = {}
        self.verdicts: dict[int, Order] = {}  # of rows in doubt that are to end
        self.ready: deque[int] = deque()  # rows on this engine's host
        self.extending: list[int] = []
        self.requests: deque[tuple[int, int, int]] = (
            deque()
        )  # (row, source, stamp) that ask for pages
        self.arrived: list[int] = []  # committed here; join at the next decision
        self.granted: dict[int, tuple[int, int]] = {}  # row -> (rank, pages) of copies to here
        self.sleeping = 0
        self.freezing = False  # the cluster asked for running rows
        self.freezing_share = (1, 1)  # for so many of so many
        self.num_inbound = self.num_outbound = 0  # rows in copies to and from here
        self.told = False  # the cluster knows that it is hungry
        self.settled = 0  # rows that had begun when it last looked around (see `intake.hunger`)
        self.asked = 0  # rows of others that ask for pages here
        self.had = 0  # rows in all, before it looks around
        self.once = False  # the decision may find more to do one pass later
        self.freed = False  # a row ended in this decision
        self.open = True  # a whole batch may be taken
        self.begin_pages = 0  # leased when the newest step was launched
        self.peak_pages = 0  # most that were leased in the last step that landed

    def _rank(self, index: int, pages: int) -> Rank:
        rank = Rank(
            index,
            self.table,
            size=pages,
            page_tokens=self.page_tokens,
            lanes=[],
            page_keys=self.page_keys,
        )
        rank.lanes.extend(make_lanes(self.policy, rank, mixes=not self.phases))
        rank.reset()  # its books are by lane
        return rank

    def limit(self, token_budget: int, max_num_seqs: int) -> None:
        """What a pass of a rank may hold."""
        self.token_budget, self.max_num_seqs = token_budget, max_num_seqs
        self.seats = min(max_num_seqs, token_budget)  # no pass exceeds its token budget

    def make_ranks(self, layout: str, num_ranks: int, pages: int) -> None:
        """Fresh ranks in a layout."""
        self.layout = layout
        self.ranks = [self._rank(index, pages) for index in range(num_ranks)]
        for rank in self.ranks:
            rank.k = self.k

    # -- what parts may ask -----------------------------------------------------------------------

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @property
    def roomiest(self) -> int:
        """Pages of its largest rank, now or in the layout of the plan if it can go back to it."""
        largest = max(rank.size for rank in self.ranks)
        if self.layout == HOME or self.switch_failed:
            return largest
        return max(largest, self.home_pages)

    @property
    def num_waiting(self) -> int:
        return sum(rank.waiting for rank in self.ranks)

    @property
    def num_resident(self) -> int:
        """Rows with HBM pages here, or pages leased for them."""
        return sum(rank.num_resident for rank in self.ranks)

    @property
    def num_ready(self) -> int:
        """Rows on this engine's host."""
        return len(self.ready)

    @property
    def num_begun(self) -> int:
        """Rows that have begun here and are not done: with HBM pages, or on this host."""
        return self.num_resident + len(self.ready)

    @property
    def free_fraction(self) -> float:
        """Free HBM pages over all pages of the engine."""
        size = sum(rank.size for rank in self.ranks)
        return sum(rank.free for rank in self.ranks) / size if size else 0.0

    @property
    def free_seats(self) -> float:
        """Free seats over all seats of the engine."""
        return 1 - self.num_resident / (self.seats * len(self.ranks))

    @property
    def num_running(self) -> int:
        """Rows that decode."""
        return sum(len(rank.running) for rank in self.ranks)

    def running_rows(self) -> list[int]:
        return [row for rank in self.ranks for row in rank.running]

    def hbm_used(self) -> int:
        """Pages leased on all ranks."""
        return sum(rank.used for rank in self.ranks)

    # -- the running set --------------------------------------------------------------------------

    def join(self, rank: Rank, row: int) -> None:
        """The row decodes from now on; the next step may have to say so (`enter`)."""
        rank.join(row)
        if self.streaming and not rank.paused:
            self.stream_growth.add(self.table.v_offset[row] + rank.k - self.k)

    def enter(self, rank: Rank, row: int) -> None:
        """A row that the backend does not have in its running set joins it."""
        self.join(rank, row)
        if self.left and row in self.left:
            del self.left[row]
            self.left_since.pop(row, None)
        else:
            self.joined[row] = None

    def unjoin(self, rank: Rank, row: int) -> None:
        """The row stops decoding; its columns become real."""
        rank.unjoin(row)
        if self.streaming:
            table, growth = self.table, self.stream_growth
            if not rank.paused:
                growth.remove(table.v_offset[row] + rank.k - self.k)
            computed = table.v_computed[row]
            table.v_host_pages[row] = -(-computed // growth.page_tokens)
            closed = computed - computed % growth.page_tokens
            if closed > table.v_host_valid[row]:
                table.v_host_valid[row] = closed

    def leave(self, rank: Rank, row: int) -> bool:
        """Out of the running set; True when the row has run in the pass before this decision."""
        self.unjoin(rank, row)
        if row in self.joined:
            del self.joined[row]
            return False
        self.left[row] = self.left_since[row] = None
        return True

    def withdraw(self, rank: Rank, row: int) -> bool:
        """Out of whatever set of the rank it is in; True as `leave`."""
        if row in rank.running:
            return self.leave(rank, row)
        if row in rank.prefilling:
            del rank.prefilling[row]
            rank.prompt_left -= self.table.known_tokens(row) - self.table.v_computed[row]
            return False
        del rank.held[row]
        if self.table.v_status[row] == Status.SLEEPING:
            self.sleeping -= 1
        return row in self.left_since

    # -- held rows (see `Rank`) whose bodies want something ---------------------------------------

    def will_extend(self, row: int) -> None:
        """The row has tokens without KV; it asks for their pages at the next decision."""
        self.table.v_status[row] = Status.EXTENDING
        self.extending.append(row)

    def fell_asleep(self, row: int) -> None:
        """The row waits for a timer; it keeps its pages until somebody needs them."""
        self.table.v_status[row] = Status.SLEEPING
        self.sleeping += 1

    def goes_on(self, row: int) -> None:
        """A row that slept, or looked for another home in vain, decodes again or prefills what it
        has no KV of."""
        table = self.table
        if table.v_status[row] == Status.SLEEPING:
            self.sleeping -= 1
        if table.v_computed[row] < table.known_tokens(row) - 1:
            self.will_extend(row)
        else:
            table.v_status[row] = Status.STALLED

    # -- calls of the cluster (they never decide) -------------------------------------------------

    def order(self, row: int, what: Order) -> None:
        """End a row, or let it sleep, at the next decision. The first order stands, but a row that
        is to sleep may still be told to end."""
        if self.orders.setdefault(row, what)[0] == "sleep":
            self.orders[row] = what
        self.once = True

    def take_order(self, row: int) -> Order | None:
        """The row has ended or left, and the order with it."""
        return self.orders.pop(row, None)

    def kick(self, out: list[act.Action]) -> None:
        """Something that a decision could read has changed: decide if the slot is free, else end
        the launched step early. A boundary is waited for, unless it is urgent."""
        step = self.launched
        if not self.alive or self.switching is not None:
            return
        if step is None:
            self.up.decide(self, out)
        elif step.n > 1 and (self.urgent or self.orders or not self.phases or not step.decode):
            out.append(act.Cut(self.id))

    @property
    def asks_elsewhere(self) -> bool:
        """Whether rows stand still here until another engine has pages for them."""
        status = self.table.v_status
        return any(status[row] == Status.FROZEN for rank in self.ranks for row in rank.held)

    def hurry(self) -> None:
        """Something outside cannot wait for the boundary."""
        self.urgent = True

    def send_away(self, part: int = 1, of: int = 1) -> None:
        """Running rows are to look for another home: `part` of every `of`, at least one."""
        self.freezing = self.urgent = True
        self.freezing_share = (part, of)

    def drain(self, is_leaving: bool) -> None:
        """Whether it will be gone soon, and its rows have somewhere to go."""
        self.draining = is_leaving

    def change_layout(self, offer: Offer) -> None:
        """To begin when nothing is in flight."""
        self.switch_to = offer

    def owe(self, rank: int, pages: int) -> None:
        """The backend wants pages of a rank back."""
        self.ranks[rank % len(self.ranks)].debt += pages
        self.urgent = True

    def look_now(self) -> None:
        """The next decision looks beyond itself."""
        self.look_q = self.q

    def time_pass(self, number: int | None) -> None:
        """The pass of that number is to be timed by itself; None: no pass is any more."""
        self.probe = None if number is None else (number, 0)

    def forget_hunger(self) -> None:
        """It may say again that nothing waits here."""
        self.told = False

    def revive(self) -> None:
        """All its devices are there again; it has no rows."""
        self.alive, self.told = True, False
