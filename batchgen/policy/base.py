"""What a policy part is: a frozen `Config`, a few pure methods, and declarations.

A part declares what it needs of the backend (`needs`), how it works (class attributes of its slot)
and when its answers may change without an event (`changes`). Nothing is inferred from what a class
overrides. A policy is compiled once (`batchgen.policy.compiled`); a part that cannot change its
mind is not asked again.

Parts read engines, ranks and the table and never write them; `batchgen policy check` proves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchgen.policy.arrangement import Arrangement, Waiting
    from batchgen.runtime.cluster.homes import Homes
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.deck import Deck
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank
    from batchgen.sequence import Table

SLOTS = (
    "recovery",
    "phase",
    "memory",
    "order",
    "admission",
    "batching",
    "placement",
    "tail",
    "predictor",
)

CHANGES = ("never", "finish", "pass")
"""When answers may change without an event: never; when a row ends (steps then end at the first
finish); at every pass (steps then have one pass while the answer matters). Parts that are asked at
boundaries only need not care what happens between them."""


class Part:
    """Base of all parts. `needs` names backend capabilities without which the part cannot work:
    "host", "switch", "prefix", "padding", "lengths"."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Options of the part, set with --set slot.option=value."""

    slot: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[str] = "pass"

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else type(self).Config()


class OrderPart(Part):
    """Who is next: lanes (persistent queues of every rank) and the order in each.

    keyed: `key` orders the rows of a lane, smallest first; it is computed when a row enters. Else a
    lane is first in, first out. Rows that lost their pages come before all others.
    plans: `arrange` orders all rows of a lane at once, by their page keys too; asked when rows
    come. two_ended: they are dealt from both ends of that order, `end` says from which.
    matches: the row with the most pages in the prefix index of its rank is next, while at most so
    many wait; 0: never.
    """

    slot = "order"
    keyed: ClassVar[bool] = False
    plans: ClassVar[bool] = False
    two_ended: ClassVar[bool] = False

    @property
    def matches(self) -> int:
        return 0

    @property
    def shares(self) -> tuple[float, ...]:
        """One share per lane of the pages and of the pass budget of a rank, when other lanes have
        rows too; asked once."""
        return (1.0,)

    def lane(self, table: Table, row: int) -> int:
        """The lane of a row; asked when it enters, with several lanes only."""
        return 0

    def key(self, table: Table, row: int) -> int:
        """Smallest first; asked when a row enters a lane, with `keyed` only."""
        return 0

    def arrange(self, waiting: Waiting) -> Arrangement:
        """An order of all waiting rows, with `plans` only."""
        raise NotImplementedError

    def end(self, rank: Rank, deck: Deck, k: int, refused: int) -> int:
        """With `two_ended` only: 0 or 1, the end of the deck that gives the next row; -1: none now.
        A rank without rows takes one even so. refused: the end whose row has just found no room, -1
        when none has; k: the rank's decode clock."""
        return 0


class AdmissionPart(Part):
    """How many rows get pages. Asked for rows of lanes, rows on the host and rows of other engines
    alike; a rank without rows takes the next one without asking.

    reserves: `lease` says how many pages a row gets, for good; else it gets those of its known
    tokens and grows by the page. whole_batch: an engine takes rows only while it is empty, until
    it is full.
    changes "never": with the same rows there, more tokens in them never make `room` say yes.
    """

    slot = "admission"
    reserves: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False
    sees_row: ClassVar[bool] = False

    def lease(self, table: Table, row: int, rank: Rank) -> int:
        """Pages of a row's worst case, with `reserves` only."""
        raise NotImplementedError

    def room(self, engine: EngineMachine, rank: Rank, pages: int, free: int, resident: int) -> bool:
        """Whether a row that takes `pages` may join `resident` rows when `free` pages are left
        after the growth of the next pass."""
        return pages <= free

    def room_for(self, engine: EngineMachine, rank: Rank, row: int, pages: int, free: int) -> bool:
        """`room`, of a row that the part may look at; with `sees_row` only."""
        return pages <= free


class BatchingPart(Part):
    """What a pass holds. whole: prompts are not cut, unless one alone exceeds the token budget.
    static: a batch keeps its dead rows to the end, and pads its prompts; needs "padding".
    paces: `pace` says how much of prompts a pass holds; passes are then decided one by one while
    rows wait or prompts are at work. Not in prefill phases, which hold nothing else.
    """

    slot = "batching"
    changes = "never"
    whole: ClassVar[bool] = False
    static: ClassVar[bool] = False
    paces: ClassVar[bool] = False

    def pace(self, engine: EngineMachine, rank: Rank) -> int:
        """Prompt tokens of the next pass of a rank, at most; with `paces` only. A pass without
        decodes has one at least; prompts of rows that an order deals from the rear of its plan come
        on top. Admitting a row does not change the answer."""
        return engine.token_budget


class PhasePart(Part):
    """When an engine changes between prefill and decode. phases False: every pass holds both.

    With phases, parts are asked at boundaries of `plan.boundary` decode passes and at every prefill
    pass; rows that decode pause during prefill and keep their pages.
    lockstep_only: engines of one rank have no phases even so.
    gathers: without phases, ranks with rows waiting take them together: `gathered` says when.
    pauses: without phases, a rank that has prompts at work computes these and nothing else; its
    rows that decode pause and keep their pages, those of the other ranks of its engine go on.
    """

    slot = "phase"
    changes = "never"
    phases: ClassVar[bool] = False
    lockstep_only: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    pauses: ClassVar[bool] = False

    def gathered(self, engine: EngineMachine, able: int, asking: int) -> bool:
        """With `gathers` only, asked while rows wait and no rank has a prompt at work: whether the
        ranks may take rows now. `asking` of them have rows waiting, `able` of these have room for
        the next one now. With the same rows there, more tokens in them make no rank able."""
        return True

    def takes(self, engine: EngineMachine, rank: Rank) -> bool:
        """With `pauses` only, asked of a rank without prompts at work where rows wait: whether it
        takes some now. With the same rows there, more tokens in them never make it say yes."""
        return True

    def starts_prefill(self, engine: EngineMachine) -> bool:
        """At a boundary with rows waiting: whether all ranks prefill now. Prefill lasts until no
        rank admits another row."""
        return True


class MemoryPart(Part):
    """What gives way when pages run short.

    way: "recompute" (pages are dropped; the row waits, first in its lane), "suspend" (the row goes
    to the host; recomputed where that is full), "stall" (nobody gives way: rows pause; when nothing
    else moves, the newest recomputes). newest: the newest row goes first; else the one with the
    largest `rank_victim`. streams: closed pages go to the host while rows decode; needs "host".
    boundaries_ahead: with phases, for how many boundaries of growth there must be pages.
    """

    slot = "memory"
    changes = "never"
    way: ClassVar[str] = "recompute"
    newest: ClassVar[bool] = True
    streams: ClassVar[bool] = False

    @property
    def boundaries_ahead(self) -> int:
        return 1

    def rank_victim(self, table: Table, row: int) -> int:
        """The largest gives way first, ties by the larger row number. While a row decodes, its
        `offset` grows with what it has decoded."""
        return 0


class PlacementPart(Part):
    """On which engine and rank a row runs, and when rows move between engines. Cluster level.

    steals: hungry engines are given rows of others (see `batchgen.runtime.cluster.hunger`).
    """

    slot = "placement"
    changes = "never"

    @property
    def steals(self) -> bool:
        return False

    @property
    def steal_min(self) -> int:
        """Rows that must wait at an engine before another takes half of them."""
        return 2

    def work(self, table: Table, row: int) -> int:
        """Work of a row in the part's own unit. The cluster counts in `cluster.loads` what it has
        given to every engine and rank; 0: nothing is counted."""
        return 0

    def place(
        self, cluster: ClusterMachine, rows: Sequence[int]
    ) -> list[tuple[int, tuple[int, int]]]:
        """(row, (engine, rank)) for every row, over the engines that take rows."""
        raise NotImplementedError

    def choose(self, cluster: ClusterMachine, row: int, engines: Homes) -> EngineMachine:
        """The new home of a row with KV, among these. One may look at all of them; `engines.turn`
        and `engines.least_loaded` do not."""
        raise NotImplementedError

    def is_slow(self, measured_ps: int, expected_ps: int) -> bool:
        """Whether passes that took `measured_ps` where `expected_ps` was expected are too slow."""
        return False

    def is_late(self, measured_ps: int, expected_ps: int) -> bool:
        """Whether a pass that took longer than expected counts as late. An engine for which that is
        so time and again lags, and gives running rows that gain."""
        return False


class TailPart(Part):
    """What happens when few rows remain on an engine that steps in lockstep.

    partitions: `layout` is asked at boundaries once input is closed and nothing waits; needs
    "switch".
    """

    slot = "tail"
    changes = "never"
    partitions: ClassVar[bool] = False

    def layout(self, cluster: ClusterMachine, engine: EngineMachine) -> Any:
        """The offer (`batchgen.runtime.cluster.tail.Offer`) to switch to now; None: stay."""
        return None


class PredictorPart(Part):
    """Expected output lengths. learns: `on_completion` changes later predictions."""

    slot = "predictor"
    changes = "never"
    learns: ClassVar[bool] = False

    def new_state(self) -> Any:
        """What it remembers, owned by the cluster; None: nothing."""
        return None

    def on_arrival(self, table: Table, rows: Sequence[int], state: Any) -> None:
        """Set `predicted` of rows that arrived."""

    def on_completion(self, table: Table, row: int, state: Any) -> None:
        """Learn from a finished row."""


class RecoveryPart(Part):
    """What becomes of the rows of an engine whose device is noticed, slow or lost.

    moves: rows with KV are copied to another engine; else they are prefilled again elsewhere.
    weighs: `copies` is asked for each of them first, where the backend has a cost model.
    """

    slot = "recovery"
    changes = "never"
    moves: ClassVar[bool] = True
    weighs: ClassVar[bool] = False

    def copies(self, copy_ps: int, recompute_ps: int) -> bool:
        """Whether a row whose KV takes so long to copy, or to compute anew, is copied; with
        `weighs` only."""
        return True
