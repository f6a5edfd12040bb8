"""Order parts: who waits in front. They do not decide how many are admitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.policy.base import OrderPart, Part
from batchgen.policy.options import MOST_TOKENS, option

if TYPE_CHECKING:
    from batchgen.sequence import Table


class Arrival(OrderPart):
    """First come, first served."""

    changes = "never"


class LongestFirst(OrderPart):
    """Longest expected work first (LPT), which bounds the tail of a closed batch.

    Work is the predicted output where there is a prediction, else the output budget, plus
    `prompt_weight` times the prompt. Source: Graham's LPT rule; Seer (arXiv 2511.14617) for
    rollouts.
    """

    changes = "never"
    keyed = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        prompt_weight: float = option(0.0, least=0, most=1_000_000)

    def key(self, table: Table, row: int) -> int:
        output = table.v_predicted[row] or table.v_budget[row]
        return -int(output + self.config.prompt_weight * table.v_prompt[row])


class ShortestFirst(LongestFirst):
    """Shortest expected work first: good for mean latency, a negative control for makespan."""

    def key(self, table: Table, row: int) -> int:
        return -super().key(table, row)


class ByPrompt(OrderPart):
    """Two lanes: prompts above `threshold_tokens`, and the rest. `long_share` of the pages and of
    the pass budget belong to the long ones while both wait, so that neither starves the other."""

    changes = "never"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        threshold_tokens: int = option(1024, least=0, most=MOST_TOKENS)
        long_share: float = option(0.5, least=0.001, most=0.999)

    @property
    def shares(self) -> tuple[float, ...]:
        share = float(self.config.long_share)
        return (share, 1 - share)

    def lane(self, table: Table, row: int) -> int:
        return 0 if table.v_prompt[row] > self.config.threshold_tokens else 1


class LongestPrefix(OrderPart):
    """The row of whose prompt the most pages are cached goes first, while at most `most_waiting`
    rows wait; first come, first served above. Source: SGLang's lpm policy, which falls back to fcfs
    beyond 128 rows; pages that the next pass computes count as cached here.
    """

    changes = "never"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        most_waiting: int = option(128, least=0, most=4096)

    @property
    def matches(self) -> int:
        return int(self.config.most_waiting)
