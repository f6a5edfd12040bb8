"""How the next pass cuts the prompts of a rank, within the token budget. One formula, one place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank


def chunk_sizes(engine: EngineMachine, rank: Rank) -> Iterator[tuple[int, int, int]]:
    """(row, tokens without KV, tokens of the next pass) of the rows that the pass has a piece of.

    Rows in admission order. Cut prompts fill what the decodes leave of the budget. Whole prompts
    run while they fit; one that alone exceeds the budget is cut. A static batch pads them to the
    longest, and the padding counts.
    """
    table, policy = engine.table, engine.policy
    budget = engine.token_budget - (0 if engine.prefill else len(rank.running))
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
