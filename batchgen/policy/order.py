"""Order parts: who waits in front. They do not decide how many are admitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchgen.memory.pool import FOREVER
from batchgen.policy.base import OrderPart, Part
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine
from batchgen.sequence import Table


class Arrival(OrderPart):
    """First come, first served."""

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER  # the order of a queue does not change by itself


class LongestFirst(OrderPart):
    """Longest expected work first (LPT), which bounds the tail of a closed batch.

    Work is the predicted output where there is a prediction, else the output budget, plus
    `prompt_weight` times the prompt. Source: Graham's LPT rule; Seer (arXiv 2511.14617) for
    rollouts.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        prompt_weight: float = 0.0

    def key(self, table: Table, row: int) -> int:
        output = table.v_predicted[row] or table.v_budget[row]
        return -int(output + self.config.prompt_weight * table.v_prompt[row])

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER


class ShortestFirst(LongestFirst):
    """Shortest expected work first: good for mean latency, a negative control for makespan."""

    def key(self, table: Table, row: int) -> int:
        return -super().key(table, row)
