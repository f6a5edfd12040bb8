"""The draft: what parts of a policy write while the next step of an engine takes shape.

Its methods are the coroutine primitives as book entries: `admit`, `resume` and `restore` combine,
`recompute`, `suspend`, `park` and `spill` yield. They keep every count right and collect the
actions; they never choose a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.actions import Failed, Finished, Release
from batchgen.memory.pool import FOREVER, pages_for
from batchgen.sequence import Phase, Status

if TYPE_CHECKING:
    from batchgen.actions import Action
    from batchgen.coroutine import Bodies
    from batchgen.runtime.engine import Engine
    from batchgen.runtime.rank import Rank
    from batchgen.sequence import Table
    from batchgen.step import Chunk


class Draft:
    """The step in the making. `rank` is the rank that parts are being asked about.

    tokens_left: pass budget of the rank after its decodes. planned_tokens: decodes plus what is
    left of every admitted prompt. pages_left: free pages after the growth of the next pass.
    preempted: a row lost its pages in this draft. passes: the composition of the rank stands for so
    many passes.
    """

    __slots__ = (
        "actions",
        "bodies",
        "chunks",
        "engine",
        "lost",
        "pages_left",
        "passes",
        "planned_tokens",
        "preempted",
        "q",
        "rank",
        "restored",
        "suspended",
        "table",
        "tokens_left",
        "touched",
    )

    def __init__(self, engine: Engine, actions: list[Action], bodies: Bodies) -> None:
        self.engine = engine
        self.table: Table = engine.table
        self.q = engine.q
        self.actions = actions
        self.bodies = bodies
        self.touched = engine.touched
        self.chunks: list[Chunk] = []
        self.suspended: list[tuple[int, int]] = []  # (row, KV tokens that the host lacks)
        self.restored: list[tuple[int, Rank]] = []
        self.lost: list[int] = []  # rows that ended here
        self.rank: Rank = engine.ranks[0]
        self.passes = FOREVER
        self.preempted = False
        self.tokens_left = self.planned_tokens = self.pages_left = 0

    def begin(self, rank: Rank) -> None:
        """Ask about `rank` from here on."""
        self.rank = rank
        self.passes = FOREVER
        self.preempted = False

    def measure(self) -> None:
        """Fill the budgets of the rank; called when the memory part has made room."""
        rank, table = self.rank, self.table
        decodes = len(rank.running)
        planned = decodes
        for row in rank.prefilling:
            planned += table.v_prompt[row] + table.v_produced[row] - table.v_computed[row]
        self.planned_tokens = planned
        self.tokens_left = self.engine.token_budget - decodes
        self.pages_left = rank.pool.free - rank.growth.growth(self.q, 1)

    # -- combine ------------------------------------------------------------------------------

    def admit(self, row: int, *, reserve_pages: int = 0, host_pages: int = 0) -> None:
        """The lane's next row starts to prefill. `row` must be what `rank.lane.peek()` returned."""
        rank, table = self.rank, self.table
        before = rank.pool.free
        rank.lane.pop()
        rank.admit(row, reserve_pages=reserve_pages)
        if host_pages:
            more = host_pages - table.v_host_pages[row]
            rank.host.lease(more)
            table.v_host_pages[row] = host_pages
        self.pages_left -= before - rank.pool.free
        self.planned_tokens += table.known_tokens(row) - table.v_computed[row]
        self.bodies.start(row)

    def resume(self, row: int) -> None:
        """A parked row decodes again."""
        rank = self.rank
        del rank.parked[row]
        rank.join(row, self.q)
        self.touched[row] = None

    def restore(self, row: int, rank: Rank, pages: int) -> None:
        """A row on the host gets `pages` of the rank; it may join when the copy is done."""
        table = self.table
        rank.pool.lease(pages)
        table.v_hbm_pages[row] = pages
        table.v_rank[row] = rank.index
        table.move(row, Status.ACTIVE)
        self.restored.append((row, rank))

    # -- yield --------------------------------------------------------------------------------

    def _stop(self, row: int) -> None:
        rank = self.rank
        if row in rank.running:
            rank.leave(row, self.q)
            self.touched[row] = None
        elif row in rank.prefilling:
            del rank.prefilling[row]
        else:
            del rank.parked[row]

    def recompute(self, row: int) -> None:
        """The row loses its pages and waits, first in its lane, to be prefilled again."""
        rank, table = self.rank, self.table
        self._stop(row)
        self._drop(row)
        table.v_preemptions[row] += 1
        rank.enqueue(row, front=True)
        self.preempted = True

    def _drop(self, row: int) -> None:
        rank, table = self.rank, self.table
        on_host = table.v_host_pages[row]
        rank.forget_kv(row)
        rank.release_hbm(row)
        rank.release_host(row)
        table.move(row, Status.INACTIVE)
        self.actions.append(Release([row], self.engine.id, "hbm"))
        if on_host:
            self.actions.append(Release([row], self.engine.id, "host"))
        self.bodies.lost(row)

    def park(self, row: int) -> None:
        """A running row pauses and keeps its pages."""
        self._stop(row)
        self.rank.parked[row] = None

    def suspend(self, row: int) -> bool:
        """The row goes to the host; its pages come free when the copy is done.

        Returns False, and recomputes it later instead, when the host has no room for it.
        """
        rank, table = self.rank, self.table
        self._stop(row)
        computed = table.v_computed[row]
        more = pages_for(computed, rank.page_tokens) - table.v_host_pages[row]
        if more > rank.host.free:
            self._drop(row)
            table.v_preemptions[row] += 1
            rank.enqueue(row, front=True)
            return False
        rank.host.lease(more)
        table.v_host_pages[row] += more
        table.v_suspensions[row] += 1
        table.move(row, Status.INACTIVE)
        self.bodies.suspended(row)
        self.suspended.append((row, computed - table.v_host_valid[row]))
        return True

    def spill(self, row: int) -> None:
        """A parked row whose KV is whole on the host gives back its pages at once."""
        rank, table = self.rank, self.table
        del rank.parked[row]
        rank.release_hbm(row)
        table.move(row, Status.INACTIVE)
        self.engine.ready.append(row)
        self.actions.append(Release([row], self.engine.id, "hbm"))
        self.bodies.suspended(row)

    # -- end ----------------------------------------------------------------------------------

    def fail(self, row: int, code: str) -> None:
        """A resident row ends without success."""
        self._end(row, Status.FAILED)
        self.actions.append(Failed(row, code))
        self.bodies.finished(row)

    def finish(self, row: int, reason: str) -> None:
        """A resident row ends with what it has."""
        self._end(row, Status.DONE)
        self.actions.append(Finished(row, reason))
        self.bodies.finished(row)

    def _end(self, row: int, status: Status) -> None:
        self._stop(row)
        self.rank.release_hbm(row)
        self.rank.release_host(row)
        self.table.move(row, status)
        self.lost.append(row)

    def fail_waiting(self, row: int, code: str) -> None:
        """The lane's next row ends without ever having had pages here."""
        self.rank.lane.pop()
        self.rank.waiting -= 1
        self.rank.release_host(row)
        self.table.move(row, Status.FAILED)
        self.lost.append(row)
        self.actions.append(Failed(row, code))
        self.bodies.finished(row)

    # -- questions ----------------------------------------------------------------------------

    def prompt_left(self, row: int) -> int:
        """Tokens of the row that are known but have no KV."""
        table = self.table
        return table.v_prompt[row] + table.v_produced[row] - table.v_computed[row]

    def restored_phase(self, row: int) -> Phase:
        """What a row does after its KV came back: decode, or prefill the tokens that the host
        lacked."""
        return Phase.DECODE if self.prompt_left(row) == 1 else Phase.PREFILL
