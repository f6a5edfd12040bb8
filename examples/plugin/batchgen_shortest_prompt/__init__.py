"""A policy part and a preset outside batchgen: the shortest prompt first, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.policy.base import OrderPart, Part
from batchgen.policy.presets import NEUTRAL, Preset
from batchgen.sequence import Table


class ShortestPrompt(OrderPart):
    """Shortest known text first, in classes of `round_tokens` tokens, inside which rows keep order.

    Known text is the prompt and what was produced already.
    """

    keyed = True
    changes = "never"  # keys are taken when a row enters the queue and never change there

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        round_tokens: int = 1

    def key(self, table: Table, row: int) -> int:
        return table.known_tokens(row) // max(1, self.config.round_tokens)


PRESET = Preset(
    name="vllm-shortest-prompt",
    parts={**NEUTRAL, "order": "shortest-prompt"},
    options={"order": {"round_tokens": 64}},
    page_tokens=16,
    prefix_cache=True,
    source="the vllm preset with another order",
)
