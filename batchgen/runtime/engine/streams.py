"""Checkpoints of resident rows in the engine's share of host memory, written as they decode.

Claims of rows that are on the host come first: streams yield to them, all at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen import actions as act

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank


def pause(engine: EngineMachine, rank: Rank) -> None:
    """The rows of the rank decode in no pass until `resume`: their streams do not grow."""
    rank.paused = True
    if engine.streaming:
        for row in rank.running:
            engine.stream_growth.remove(engine.table.v_offset[row] + rank.k - engine.k)


def resume(engine: EngineMachine, rank: Rank) -> None:
    """They decode again. Streams grow by the engine's clock, which did not wait for the rank."""
    rank.paused = False
    if engine.streaming:
        for row in rank.running:
            engine.stream_growth.add(engine.table.v_offset[row] + rank.k - engine.k)


def lease_stream(engine: EngineMachine, row: int, pages: int) -> None:
    """Lease `pages` in all for the stream of a row; when the host share is full no row streams any
    more."""
    more = pages - engine.table.v_host_pages[row]
    if engine.host_used + engine.stream_used + more > engine.host_size:
        drop_streams(engine)
        return
    engine.stream_used += more
    engine.table.v_host_pages[row] = pages


def drop_streams(engine: EngineMachine) -> None:
    """Checkpoints of resident rows yield; streaming begins again when the engine is empty."""
    engine.streaming = False
    table = engine.table
    engine.stream_growth.clear()
    engine.stream_used = 0
    rows = [row for rank in engine.ranks for row in (*rank.running, *rank.prefilling, *rank.held)]
    rows += engine.arrived
    for row in rows:
        table.v_host_pages[row] = table.v_host_valid[row] = 0
    engine.up.out.append(act.Release(rows, engine.id, "host"))


def end_stream(engine: EngineMachine, row: int) -> None:
    """The row, in no set, needs no checkpoint any more."""
    table = engine.table
    if table.v_host_pages[row]:
        engine.stream_used -= table.v_host_pages[row]
        table.v_host_pages[row] = 0
    table.v_host_valid[row] = 0
