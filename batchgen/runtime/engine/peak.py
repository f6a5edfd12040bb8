"""The most pages that were leased in a step of many passes. Reads the books, changes nothing.

Rows grow from pass to pass, and in a step "until n" they leave it when they end, though their pages
are given back in the books only when the step is reported. So the peak is at the end of the step,
or at the end of a pass after which a row leaves: what steps of one pass each would show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.memory.pool import GrowthHistogram, pages_for
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine

DECODE = int(Status.DECODE)


def most_pages(
    engine: EngineMachine, k: int, passes: int, finished: list[tuple[int, int, str]]
) -> int:
    """Pages of all ranks at the end of that pass of [k, k + passes) where they are most, before
    rows that ended in it gave theirs back. The books are those before the step."""
    growth = _together(engine)
    used, clock, peak, end = engine.hbm_used(), k, 0, k + passes
    shared: dict[tuple[int, int], int] = {}
    for at, row in _leaving(engine, finished, end):
        if at > clock:
            used += growth.growth(clock, at - clock)
            clock = at
            peak = max(peak, used)
        table = engine.table
        offset = table.v_offset[row]
        if table.v_reserved[row]:
            pages = table.v_pages[row]
        else:
            growth.remove(offset)
            pages = pages_for(offset + at, growth.page_tokens)
        used -= pages - _still_leased(engine, row, shared)
    if end > clock:
        used += growth.growth(clock, end - clock)
    return max(peak, used)


def _together(engine: EngineMachine) -> GrowthHistogram:
    """The growth of all ranks, which share a clock."""
    growth = GrowthHistogram(engine.page_tokens)
    growth.counts = list(engine.ranks[0].growth.counts)
    growth.num_rows = engine.ranks[0].growth.num_rows
    for rank in engine.ranks[1:]:
        growth.num_rows += rank.growth.num_rows
        growth.counts = [a + b for a, b in zip(growth.counts, rank.growth.counts, strict=True)]
    return growth


def _leaving(
    engine: EngineMachine, finished: list[tuple[int, int, str]], end: int
) -> list[tuple[int, int]]:
    """(decode clock behind its last pass, row) of rows that leave before `end`, in order. With lag
    the outcome is known one pass later, and the row is in that pass too."""
    table = engine.table
    found: list[tuple[int, int]] = []
    for row, produced, _ in finished:
        if table.v_status[row] == DECODE:
            at = table.v_prompt[row] + produced - 1 - table.v_offset[row] + engine.lag
            if at < end:
                found.append((at, row))
    found.sort()
    return found


def _still_leased(engine: EngineMachine, row: int, shared: dict[tuple[int, int], int]) -> int:
    """Pages of the row that other rows of its rank lease too. `shared`: leases of pages that rows
    which left before had."""
    table = engine.table
    rank = engine.ranks[table.v_rank[row]]
    count = table.v_shared[row]
    if rank.prefix is None or not count:
        return 0
    assert rank.page_keys is not None
    kept = 0
    for key in rank.page_keys(row)[:count]:
        place = (rank.index, key)
        left = shared.get(place, rank.prefix.leases(key)) - 1
        shared[place] = left
        kept += left > 0
    return kept
