"""Lanes: persistent queues of waiting rows; how rows come to them and go elsewhere. A lane knows an
order; nothing here decides who is admitted.

Rows that wait need neither lease nor copy. One that ends meanwhile dies lazily: its status is no
longer WAITING when it surfaces.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from batchgen.policy.arrangement import Arrangement, Waiting
from batchgen.runtime.engine.deck import Deck, MatchLane
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.policy.compiled import Compiled
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank

WAITING = int(Status.WAITING)


class FifoLane:
    """First in, first out; recomputed rows come back in front, others take from the back."""

    __slots__ = ("_rows", "_status")

    def __init__(self, status: array[int]) -> None:
        self._rows: deque[int] = deque()
        self._status = status

    def push(self, row: int) -> None:
        """Add a row behind all others."""
        self._rows.append(row)

    def push_front(self, row: int) -> None:
        """Add a row that must come next (it lost its place through no fault of its own)."""
        self._rows.appendleft(row)

    def peek(self) -> int:
        """The next row, or -1."""
        rows, status = self._rows, self._status
        while rows:
            row = rows[0]
            if status[row] == WAITING:
                return row
            rows.popleft()
        return -1

    def pop(self) -> None:
        """Remove what `peek` returned."""
        self._rows.popleft()

    def take_back(self) -> int:
        """Remove the last row (for another engine); -1 when there is none."""
        rows, status = self._rows, self._status
        while rows:
            row = rows.pop()
            if status[row] == WAITING:
                return row
        return -1

    def drain(self) -> list[int]:
        """Remove everything; returns the rows in order."""
        rows = self.rows()
        self._rows.clear()
        return rows

    def rows(self) -> list[int]:
        """The rows in order (a copy, for drains and checks)."""
        return [row for row in self._rows if self._status[row] == WAITING]


class KeyedLane:
    """Smallest key first, ties by entry; a second heap, made when first needed, is for the back.

    Rows pushed to the front come before every key, newest first.
    """

    __slots__ = ("_back", "_front", "_heap", "_key", "_live", "_seq", "_status")

    def __init__(self, status: array[int], key: Callable[[int], int]) -> None:
        self._status = status
        self._key = key
        self._front: deque[int] = deque()
        self._heap: list[tuple[int, int, int]] = []
        self._back: list[tuple[int, int, int]] | None = None
        self._live: dict[int, int] = {}  # row -> its entry; older entries are dead
        self._seq = 0

    def push(self, row: int) -> None:
        self._seq += 1
        key = self._key(row)
        self._live[row] = self._seq
        heapq.heappush(self._heap, (key, self._seq, row))
        if self._back is not None:
            heapq.heappush(self._back, (-key, -self._seq, row))

    def push_front(self, row: int) -> None:
        self._front.appendleft(row)

    def _alive(self, row: int, seq: int) -> bool:
        return self._live.get(row) == seq and self._status[row] == WAITING

    def peek(self) -> int:
        front, heap = self._front, self._heap
        while front:
            if self._status[front[0]] == WAITING:
                return front[0]
            front.popleft()
        while heap:
            _, seq, row = heap[0]
            if self._alive(row, seq):
                return row
            heapq.heappop(heap)
        return -1

    def pop(self) -> None:
        if self._front:
            self._front.popleft()
        else:
            del self._live[heapq.heappop(self._heap)[2]]

    def take_back(self) -> int:
        if self._back is None:
            self._back = [(-key, -seq, row) for key, seq, row in self._heap]
            heapq.heapify(self._back)
        while self._back:
            _, seq, row = heapq.heappop(self._back)
            if self._alive(row, -seq):
                del self._live[row]
                return row
        while self._front:
            row = self._front.pop()
            if self._status[row] == WAITING:
                return row
        return -1

    def drain(self) -> list[int]:
        rows = self.rows()
        self._front.clear()
        self._heap.clear()
        self._back = None
        self._live.clear()
        return rows

    def rows(self) -> list[int]:
        front = [row for row in self._front if self._status[row] == WAITING]
        keyed = [row for _, seq, row in sorted(self._heap) if self._alive(row, seq)]
        return front + keyed


Lane = FifoLane | KeyedLane | Deck | MatchLane


def make_lanes(policy: Compiled, rank: Rank, *, mixes: bool) -> list[Lane]:
    """Empty lanes of a rank, as the order part wants them. mixes: prompts run beside decodes."""
    table, order = rank.table, policy.order
    status, keys = table.v_status, rank.page_keys

    def arrange(rows: list[int], ended: list[int]) -> Arrangement:
        found: Arrangement = order.arrange(
            Waiting(
                table=table,
                rows=rows,
                ended=ended,
                keys=keys or _no_keys,
                page_tokens=rank.page_tokens,
                mixes=mixes,
            )
        )
        return found

    if policy.plans:
        return [Deck(status, arrange)]
    if policy.matches and keys is not None:
        return [MatchLane(status, policy.matches, rank.hits)]
    if policy.keyed:
        return [
            KeyedLane(status, lambda row: order.key(table, row)) for _ in range(policy.num_lanes)
        ]
    return [FifoLane(status) for _ in range(policy.num_lanes)]


def _no_keys(row: int) -> list[int]:
    return []


# -- the lanes of an engine -----------------------------------------------------------------------


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
    if engine.policy.plans:
        plan(engine, always=False)
    engine.told = False


def plan(engine: EngineMachine, *, always: bool) -> None:
    """Rows that came are arranged by the order part; always: all that wait are."""
    for rank in engine.ranks:
        for lane in rank.lanes:
            if isinstance(lane, Deck):
                for row in lane.arrange(always=always):
                    lane.awaited.add(row)
                    engine.up.awaited[row] = engine.id


def replan(engine: EngineMachine, row: int, *, well: bool) -> bool:
    """An awaited row has ended; True when it was the last and what waits has a new order."""
    for rank in engine.ranks:
        for lane in rank.lanes:
            if isinstance(lane, Deck) and lane.has_ended(row, well=well):
                plan(engine, always=True)
                return True
    return False


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
