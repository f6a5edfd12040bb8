"""How long ranks of lockstep engines wait for the others, over a whole run: their passes against
the same with the load spread evenly. It reads what was recorded, and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.cost.api import PassLoad
from batchgen.sim.faults import NORMAL_SPEED, Fault
from batchgen.sim.tail import even_and_alone, speeds_of

if TYPE_CHECKING:
    from batchgen.cost.api import CostModel


def barrier_s(
    steps: Mapping[str, Any],
    faults: Sequence[Fault],
    totals: tuple[Mapping[str, Any], PassLoad],
    cost: CostModel,
    num_engines: int,
    group: tuple[int, int],
) -> dict[str, float]:
    """Seconds, mean over the engines: {"prompts": in passes with prompts, "decodes": in others}.
    Empty: engines have one rank. totals and group as of `tail_causes_s`. What a slow GPU adds is
    not counted."""
    if cost.num_ranks == 1:
        return {}
    even, _ = even_and_alone(cost, *totals)
    span = steps["duration_ps"].astype(np.float64)
    for engine, changes in enumerate(speeds_of(faults, num_engines, group)):
        mine = steps["engine"] == engine
        at = np.searchsorted([time for time, _ in changes], steps["start_ps"][mine], side="right")
        speed = np.array([max(one, 1) for _, one in changes], dtype=np.float64)[at - 1]
        span[mine] /= np.maximum(speed / NORMAL_SPEED, 1.0)
    waited = np.maximum(span - even, 0.0)
    prompts = totals[0]["prompt_tokens"] > 0
    return {
        "prompts": float(waited[prompts].sum()) / num_engines / 1e12,
        "decodes": float(waited[~prompts].sum()) / num_engines / 1e12,
    }
