"""How the next pass cuts the prompts of a rank, within the token budget. One formula, one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from batchgen.runtime.engine.deck import REAR

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank


def prompt_budgets(engine: EngineMachine, rank: Rank) -> tuple[int, int]:
    """Prompt tokens that the next pass of a rank may hold, and at which it takes no more rows that
    are paced: prompts of the rear end of a deck are not, and come on top of the pace."""
    budget = engine.token_budget
    if engine.prefill or engine.pauses:
        return budget, budget
    budget -= len(rank.running) + len(rank.dead)
    if not engine.policy.paces:
        return budget, budget
    pace: int = engine.policy.pace(engine, rank)
    if not rank.running:
        pace = max(pace, 1)
    table = engine.table
    for row in rank.prefilling:
        if table.v_side[row] == REAR:
            pace += table.v_prompt[row] + table.v_produced[row] - table.v_computed[row]
    return budget, min(budget, pace)


def chunk_sizes(engine: EngineMachine, rank: Rank) -> Iterator[tuple[int, int, int]]:
    """(row, tokens without KV, tokens of the next pass) of the rows that the pass has a piece of.

    Rows in admission order. Cut prompts fill what the decodes leave of the budget, dead rows
    included, or what the batching part paces. Whole prompts run while they fit; one that alone
    exceeds what is left is cut. A static batch pads them to the longest, and the padding counts.
    """
    table, policy = engine.table, engine.policy
    _, budget = prompt_budgets(engine, rank)
    if rank.lane_used and not policy.static:
        yield from _by_lane(engine, rank, budget)
        return
    left = budget
    longest = count = 0
    for row in rank.prefilling:
        need = table.v_prompt[row] + table.v_produced[row] - table.v_computed[row]
        size = need
        if policy.static:
            longest, count = max(longest, need), count + 1
            if longest * count > budget:
                if count > 1:
                    return
                size = budget
        elif need > left:
            if policy.whole and left < budget:
                return
            size = left
        if size <= 0:
            return
        yield row, need, size
        left -= size
        if left <= 0 or size < need:
            return


def _by_lane(engine: EngineMachine, rank: Rank, budget: int) -> Iterator[tuple[int, int, int]]:
    """The same with several lanes: while others have prompts too, a lane has its share of the
    budget; what a lane leaves goes to all rows, in admission order."""
    table, policy = engine.table, engine.policy
    needs = {
        row: table.v_prompt[row] + table.v_produced[row] - table.v_computed[row]
        for row in rank.prefilling
    }
    present = {table.v_lane[row] for row in needs}
    quotas = {
        lane: int(policy.shares[lane] * budget) if len(present) > 1 else budget for lane in present
    }
    sizes: dict[int, int] = {}
    left = budget
    for shared in (True, False):
        begun: set[int] = {table.v_lane[row] for row in sizes}
        for row, need in needs.items():
            lane, have = table.v_lane[row], sizes.get(row, 0)
            room = min(left, quotas[lane]) if shared else left
            more = min(need - have, room)
            if policy.whole and have + more < need and (have == 0) and lane in begun:
                continue  # a whole prompt waits for a pass with room
            if more <= 0:
                continue
            begun.add(lane)
            sizes[row] = have + more
            quotas[lane] -= more
            left -= more
    for row, size in sizes.items():
        yield row, needs[row], size
