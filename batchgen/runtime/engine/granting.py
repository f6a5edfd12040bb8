"""Pages for rows that have KV: on this engine's host, on other engines, or with new tokens.

One test for all of them, the admission part's, as for rows of the lanes (`intake`).
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.coroutine import Outcome
from batchgen.memory.pool import pages_for
from batchgen.runtime.advisor import HOME
from batchgen.runtime.engine.copies import gave_host
from batchgen.runtime.engine.giving import recompute
from batchgen.runtime.engine.lane import enqueue
from batchgen.runtime.engine.streams import drop_streams, lease_stream
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine

PREFILL = int(Status.PREFILL)
_USED = attrgetter("used")


def join_arrived(engine: EngineMachine) -> None:
    """Rows whose copies are complete go on: they decode, or prefill what their copy lacked."""
    table, arrived = engine.table, engine.arrived
    if engine.streaming and any(not table.v_host_pages[row] for row in arrived):
        drop_streams(engine)  # a checkpoint has no holes: rows from elsewhere have none here
    engine.arrived = []
    for row in arrived:
        rank = engine.ranks[table.v_rank[row]]
        rank.inbound -= 1
        engine.num_inbound -= 1
        if table.v_computed[row] < table.v_prompt[row] + table.v_produced[row] - 1:
            rank.held[row] = None
            engine.will_extend(row)
        else:
            engine.enter(rank, row)


def take_in(engine: EngineMachine, out: list[act.Action]) -> None:
    """Grant pages to rows on this engine's host, then to rows that ask from elsewhere."""
    transfers = engine.up.transfers
    batch: list[int] = []
    ready = engine.ready
    while ready:
        row = ready[0]
        if grant(engine, row):
            batch.append(row)
        elif fits_ever(engine, row):
            _blocked(engine)
            break
        else:  # its pool has shrunk
            lose_host_copy(engine, row)
        ready.popleft()
    if batch:
        transfers.restore(engine, batch, out)
    requests = engine.requests
    coming: dict[int, list[int]] = {}
    while requests:
        row, source, stamp = requests[0]
        if not transfers.asks(row, stamp):
            requests.popleft()
        elif grant(engine, row):
            requests.popleft()
            coming.setdefault(source, []).append(row)
        elif fits_ever(engine, row):
            _blocked(engine)
            break
        else:
            requests.popleft()
            transfers.refused(row, source)
    for source, rows in coming.items():
        transfers.move(rows, source, engine, out)


def _blocked(engine: EngineMachine) -> None:
    """More rows with KV than the layout of a tail holds: it is given up for them."""
    if engine.layout != HOME:
        engine.up.undo(engine)


def fits_ever(engine: EngineMachine, row: int) -> bool:
    """Whether some rank could hold the row and its next token, were it empty; also at home."""
    pages = pages_for(engine.table.v_computed[row] + 1, engine.page_tokens)
    if any(pages <= rank.size - rank.debt for rank in engine.ranks):
        return True
    return engine.layout != HOME and pages <= engine.roomiest


def lose_host_copy(engine: EngineMachine, row: int) -> None:
    """A row on the host that fits no rank any more waits to be prefilled, or fails by name."""
    table = engine.table
    gave_host(engine, [row])
    engine.up.out.append(act.Release([row], engine.id, "host"))
    table.v_recomputed[row] += table.v_computed[row]
    table.v_computed[row] = 0
    table.v_preemptions[row] += 1
    engine.once = engine.freed = True
    enqueue(engine, row, engine.ranks[0], front=True)
    if engine.up.bodies is not None:
        engine.up.tell_body(engine, row, Outcome.LOST)


def grant(engine: EngineMachine, row: int) -> bool:
    """A lease on the emptiest of the ranks that have room (some rank, never "the emptiest rank": so
    that what is refused stays refused)."""
    table, policy = engine.table, engine.policy
    computed = table.v_computed[row]
    ranks = engine.ranks if len(engine.ranks) == 1 else sorted(engine.ranks, key=_USED)
    for rank in ranks:
        pages = -(-computed // rank.page_tokens)
        if policy.reserves:
            pages = max(pages, policy.lease(table, row, rank))
        if pages > rank.size or computed // rank.page_tokens >= rank.size:
            continue
        resident = rank.num_seated
        if resident >= engine.seats:
            continue
        if resident or rank.used:
            growth = rank.growth
            free = rank.size - rank.used - growth.counts[rank.k % growth.page_tokens]
            extra = 0 if policy.reserves or computed % rank.page_tokens else 1
            if not (
                policy.room_for(engine, rank, row, pages + extra, free)
                if policy.sees_row
                else policy.room(engine, rank, pages + extra, free, resident)
            ):
                continue
        rank.used += pages
        if rank.lane_used:
            rank.lane_used[table.v_lane[row]] += pages
        rank.inbound += 1
        engine.num_inbound += 1
        engine.granted[row] = (rank.index, pages)
        return True
    return False


def extend_now(engine: EngineMachine) -> None:
    """Rows with new tokens lease what these need; refused, they are prefilled from the start."""
    table, policy = engine.table, engine.policy
    rows, engine.extending = engine.extending, []
    for row in rows:
        if table.v_status[row] != Status.EXTENDING or table.v_engine[row] != engine.id:
            continue
        rank = engine.ranks[table.v_rank[row]]
        known = table.known_tokens(row)
        wanted = pages_for(known, rank.page_tokens)
        if policy.reserves:
            wanted = max(wanted, policy.lease(table, row, rank))
        more = max(wanted - table.v_pages[row], 0)
        growth = rank.growth
        if more > rank.size - rank.used - growth.counts[rank.k % growth.page_tokens]:
            recompute(engine, rank, row)
            engine.once = True
            continue
        rank.lease(row, more)
        if policy.reserves:
            table.v_reserved[row] = 1
        del rank.held[row]
        rank.prefilling[row] = None
        if engine.streaming:
            lease_stream(engine, row, pages_for(known, rank.page_tokens))
        rank.prompt_left += known - table.v_computed[row]
        table.v_status[row] = PREFILL
