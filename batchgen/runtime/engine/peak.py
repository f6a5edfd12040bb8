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


def most_pages(engine: EngineMachine, passes: int, finished: list[tuple[int, int, str]]) -> int:
    """Pages of all ranks at the end of that of so many passes where they are most, before rows that
    ended in it gave theirs back. The books are those before the step. No rank pauses in it."""
    growth = _together(engine)
    used, clock, peak = engine.hbm_used(), 0, 0
    shared: dict[tuple[int, int], int] = {}
    for at, row in _leaving(engine, finished, passes):
        if at > clock:
            used += growth.growth(clock, at - clock)
            clock = at
            peak = max(peak, used)
        table = engine.table
        computed = table.v_offset[row] + engine.ranks[table.v_rank[row]].k
        if table.v_reserved[row]:
            pages = table.v_pages[row]
        else:
            growth.remove(computed)
            pages = pages_for(computed + at, growth.page_tokens)
        used -= pages - _still_leased(engine, row, shared)
    if passes > clock:
        used += growth.growth(clock, passes - clock)
    return max(peak, used)


def _together(engine: EngineMachine) -> GrowthHistogram:
    """The growth of all ranks, by a clock that begins with the step."""
    growth = GrowthHistogram(engine.page_tokens)
    for rank in engine.ranks:
        counts, now = rank.growth.counts, rank.k % engine.page_tokens
        growth.num_rows += rank.growth.num_rows
        counts = counts[now:] + counts[:now]
        growth.counts = [a + b for a, b in zip(growth.counts, counts, strict=True)]
    return growth


def _leaving(
    engine: EngineMachine, finished: list[tuple[int, int, str]], end: int
) -> list[tuple[int, int]]:
    """(passes of the step that it is in, row) of rows that leave before pass `end`, in order. With
    lag the outcome is known one pass later, and the row is in that pass too."""
    table = engine.table
    found: list[tuple[int, int]] = []
    for row, produced, _ in finished:
        if table.v_status[row] == DECODE:
            computed = table.v_offset[row] + engine.ranks[table.v_rank[row]].k
            at = table.v_prompt[row] + produced - 1 - computed + engine.lag
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
