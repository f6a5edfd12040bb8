"""Rows with KV that come to an engine, leave it or stay: the engine's side of a transfer.

The cluster calls; nothing here decides. What a transfer is: `batchgen.runtime.cluster.transfer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.runtime.engine.streams import end_stream
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine

ARRIVED, HOST = int(Status.ARRIVED), int(Status.HOST)

# -- on their way ---------------------------------------------------------------------------------


def asked(engine: EngineMachine, row: int, source: int, stamp: int) -> None:
    """A row of another engine asks for pages here; the engine answers at its next decision."""
    engine.requests.append((row, source, stamp))


def took_in(engine: EngineMachine, rows: Sequence[int]) -> None:
    """Copies to this engine are complete: rows join at its next decision."""
    table = engine.table
    granted, reserved = engine.granted, 1 if engine.policy.reserves else 0
    for row in rows:
        table.v_rank[row], table.v_pages[row] = granted.pop(row)
        table.v_engine[row] = engine.id
        table.v_reserved[row] = reserved
        table.v_status[row] = ARRIVED
    engine.arrived += rows


def ungrant(engine: EngineMachine, rows: Sequence[int]) -> None:
    """Copies to this engine did not come about: pages leased for them come free."""
    for row in rows:
        index, pages = engine.granted.pop(row)
        rank = engine.ranks[index]
        rank.used -= pages
        if rank.lane_used:
            rank.lane_used[engine.table.v_lane[row]] -= pages
        rank.inbound -= 1
        engine.num_inbound -= 1


def suspended(engine: EngineMachine, rows: Sequence[int]) -> None:
    """The KV of rows has reached the host: their pages come free."""
    table = engine.table
    engine.num_outbound -= len(rows)
    for row in rows:
        rank = engine.ranks[table.v_rank[row]]
        rank.outbound_pages -= table.v_pages[row]
        rank.release(row)
        table.v_host_valid[row] = table.v_computed[row]
        table.v_status[row] = Status.HOST
        engine.ready.append(row)


def not_suspended(engine: EngineMachine, rows: Sequence[int]) -> None:
    """The KV of rows cannot be brought to the host: it is given up, with their pages."""
    engine.num_outbound -= len(rows)
    gave_host(engine, rows)
    for row in rows:
        rank = engine.ranks[engine.table.v_rank[row]]
        rank.outbound_pages -= engine.table.v_pages[row]
        rank.release(row)


def restored(engine: EngineMachine, rows: Sequence[int]) -> None:
    """Rows of this engine's host are back in HBM; their copy stays as a stream, if any do."""
    if engine.streaming:
        pages = sum(engine.table.v_host_pages[row] for row in rows)
        engine.host_used -= pages
        engine.stream_used += pages
    else:
        gave_host(engine, rows)
        engine.up.out.append(act.Release(list(rows), engine.id, "host"))


def gave_hbm(engine: EngineMachine, rows: Sequence[int]) -> None:
    """Frozen rows live elsewhere now."""
    table = engine.table
    for row in rows:
        rank = engine.ranks[table.v_rank[row]]
        del rank.held[row]
        rank.release(row)
        end_stream(engine, row)


def gave_host(engine: EngineMachine, rows: Sequence[int]) -> None:
    """The host copies of rows are not needed any more."""
    table = engine.table
    for row in rows:
        engine.host_used -= table.v_host_pages[row]
        table.v_host_pages[row] = table.v_host_valid[row] = 0


def give_ready(engine: EngineMachine, count: int) -> list[int]:
    """Up to `count` rows on the host look for a home elsewhere, the last first."""
    return [engine.ready.pop() for _ in range(min(count, len(engine.ready)))]


def take_ready(engine: EngineMachine, row: int) -> bool:
    """The row is not to be restored any more; False when it is not on the host, free to go."""
    if row not in engine.ready:
        return False
    engine.ready.remove(row)
    return True


def keep(engine: EngineMachine, row: int) -> None:
    """Nobody takes the row: it goes on here, or stays on this host."""
    if engine.table.v_status[row] == Status.HOST:
        engine.ready.append(row)
    else:
        engine.goes_on(row)
