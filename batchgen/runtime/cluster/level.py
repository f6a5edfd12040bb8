"""How many running rows an engine that lags should give to those that have nothing waiting: as many
as gain. Pure; it moves nothing.

A row that moves runs in the passes of its new engine for what is expected of it still. It gains
when those, which it lengthens, and its copy together take less time than the passes that it leaves.
What engines hold counts as it was in their last timed pass: a decision may not depend on the length
of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchgen.runtime.advisor import RankLoad
from batchgen.sequence import residual_tokens

if TYPE_CHECKING:
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine

PER_THOUSAND = 1000


class Composition:
    """A timed pass. loads: what it held, one per rank; left: the output tokens that are expected of
    each of its rows still, on average; free: pages that were free."""

    __slots__ = ("free", "left", "loads")

    def __init__(self, loads: Sequence[RankLoad], left: int, free: int) -> None:
        self.loads, self.left, self.free = loads, left, free

    @property
    def rows(self) -> int:
        """Rows that decoded."""
        return sum([load[0] for load in self.loads])

    @property
    def context(self) -> int:
        """KV tokens that each of them read, on average."""
        return sum([load[1] for load in self.loads]) // max(self.rows, 1)


def seen(engine: EngineMachine, loads: Sequence[RankLoad], *, rows: bool) -> Composition:
    """The pass with these loads, which the engine launches now; rows: look at each of them, to say
    what is left of it. (Every engine that is watched asks this: it only keeps what there is.)"""
    free = 0
    for rank in engine.ranks:
        free += rank.size - rank.used
    return Composition(loads, _left(engine) if rows else 0, free)


def _left(engine: EngineMachine) -> int:
    """Output tokens that are expected of a running row still, on average; where nobody predicts as
    many as it has produced."""
    table, total, count = engine.table, 0, 0
    for rank in engine.ranks:
        for row in rank.running:
            produced = table.v_offset[row] + rank.k - table.v_prompt[row] + 1
            left, predicted = table.v_budget[row] - produced, table.v_predicted[row]
            total += residual_tokens(left, produced, predicted)
            count += 1
    return total // max(count, 1)


def rows_to_give(
    cluster: ClusterMachine, donor: EngineMachine, takers: Sequence[EngineMachine]
) -> int:
    """How many running rows of the donor gain if these engines take equal parts of them."""
    before = cluster.pace.seen.get(donor.id)
    if before is None or not before.rows or not takers:
        return 0
    mine, each = before.rows, before.context
    cost_ps = _move_ps(cluster, each)
    most = min(mine, sum(_room(cluster, one, each) for one in takers))
    rows = sum(_rows(cluster, one) for one in takers) // len(takers)
    context = _context(cluster, takers, each)
    latest = max(takers, key=cluster.pace.lateness)

    def gains(moved: int) -> bool:
        """Whether the last of so many does."""
        more, kept = -(-moved // len(takers)), mine - moved + 1
        there_ps = _pass_ps(cluster, latest, rows + more, rows * context + more * each)
        here_ps = _pass_ps(cluster, donor, kept, kept * each)
        return before.left * (here_ps - there_ps) > moved * cost_ps

    least = 0
    while least < most:  # the largest number of which the last one gains
        middle = (least + most + 1) // 2
        if gains(middle):
            least = middle
        else:
            most = middle - 1
    return least


def _rows(cluster: ClusterMachine, engine: EngineMachine) -> int:
    """Rows that decode at an engine, or will as soon as they have come."""
    return engine.settled + engine.asked


def _room(cluster: ClusterMachine, engine: EngineMachine, context: int) -> int:
    """Rows of that context for which an engine had pages, with one more each to grow."""
    before = cluster.pace.seen.get(engine.id)
    if before is None or not engine.settled:
        free = sum(rank.size for rank in engine.ranks)
    else:
        free = before.free
    return max(free // (context // engine.page_tokens + 2) - engine.asked, 0)


def _context(cluster: ClusterMachine, engines: Sequence[EngineMachine], other: int) -> int:
    """KV tokens of a row at these engines, on average; of nobody's rows: the other number."""
    seen = cluster.pace.seen
    known = [seen[one.id] for one in engines if one.settled and one.id in seen]
    rows = sum(one.rows for one in known)
    return sum(one.rows * one.context for one in known) // rows if rows else other


def _pass_ps(cluster: ClusterMachine, engine: EngineMachine, rows: int, read: int) -> int:
    """A pass in which so many rows decode that read so many KV tokens in all, at the engine's
    speed."""
    ranks = engine.num_ranks
    each, part = -(-rows // ranks), -(-read // ranks)
    loads: list[RankLoad] = [(each, part, 0, 0, 0, each, 0)] * ranks
    return cluster.pace.expected_at(engine, loads) * cluster.pace.lateness(engine) // PER_THOUSAND


def _move_ps(cluster: ClusterMachine, context: int) -> int:
    """What it takes to copy a row of that context to another engine, of another node."""
    assert cluster.advisor is not None
    return cluster.advisor.copy_ps(context, "inter")
