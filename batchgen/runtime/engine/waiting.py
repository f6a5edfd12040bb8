"""Rows that wait in the lanes of an engine: they come, go elsewhere, or end there.

They need neither lease nor copy. Nothing here decides who is admitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank

WAITING = int(Status.WAITING)


def enqueue(engine: EngineMachine, row: int, rank: Rank, *, front: bool = False) -> bool:
    """The row waits in a lane of the rank. False: it can never fit there, and has failed by
    name, here and now."""
    table, policy = engine.table, engine.policy
    table.v_engine[row] = engine.id
    table.v_rank[row] = rank.index
    pages = (table.v_prompt[row] + table.v_produced[row]) // engine.page_tokens + 1
    if policy.reserves:
        pages = max(pages, policy.lease(table, row, rank))
    if pages > rank.size:
        roomier = max(engine.ranks, key=lambda one: one.size)
        if pages <= roomier.size:
            return enqueue(engine, row, roomier, front=front)
        if pages > engine.roomiest:
            engine.up.too_large(engine, row, pages, roomier.size)
            return False
    table.v_status[row] = WAITING
    lane = rank.lanes[0]
    if policy.num_lanes > 1:
        index = table.v_lane[row] = policy.order.lane(table, row)
        lane = rank.lanes[index]
    if front:
        lane.push_front(row)
    else:
        lane.push(row)
    rank.waiting += 1
    return True


def offer(engine: EngineMachine, rows: Sequence[int], rank: int = -1) -> None:
    """Rows to be run here, on a rank or (-1) where fewest wait."""
    ranks = engine.ranks
    where = ranks[rank % len(ranks)] if rank >= 0 else ranks[0] if len(ranks) == 1 else None
    for row in rows:
        enqueue(engine, row, where or min(ranks, key=lambda one: one.waiting))
    engine.told = False


def reclaim(engine: EngineMachine, count: int) -> list[int]:
    """Up to `count` waiting rows go elsewhere, those that would run last, last first."""
    rows: list[int] = []
    while len(rows) < count:
        rank = max(engine.ranks, key=lambda one: one.waiting)
        if not rank.waiting:
            break
        for lane in reversed(rank.lanes):
            row = lane.take_back()
            if row >= 0:
                rank.waiting -= 1
                rows.append(row)
                break
    return rows


def cancel_waiting(engine: EngineMachine, row: int) -> bool:
    """Take a row out of its lane; False when it does not wait here. Its entry dies lazily."""
    if engine.table.v_status[row] != Status.WAITING:
        return False
    engine.ranks[engine.table.v_rank[row]].waiting -= 1
    return True
