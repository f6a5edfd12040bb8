"""Predictor parts: expected output lengths. A policy never sees a true one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchgen.policy.base import Part, PredictorPart
from batchgen.policy.options import MOST_TOKENS, option

if TYPE_CHECKING:
    from batchgen.sequence import Table


class NoPrediction(PredictorPart):
    """Nobody knows anything."""


class MeanSeen(PredictorPart):
    """Exponential mean of finished lengths; `initial_tokens` until the first row ends."""

    learns = True
    changes = "finish"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        alpha: float = option(0.05, least=0, most=1)
        initial_tokens: int = option(0, least=0, most=MOST_TOKENS)

    def new_state(self) -> dict[str, float]:
        return {"mean": float(self.config.initial_tokens)}

    def on_arrival(self, table: Table, rows: Sequence[int], state: Any) -> None:
        mean = int(state["mean"])
        if mean:
            for row in rows:
                table.v_predicted[row] = min(mean, table.v_budget[row])

    def on_completion(self, table: Table, row: int, state: Any) -> None:
        produced = table.v_produced[row]
        mean = state["mean"]
        state["mean"] = produced if not mean else mean + self.config.alpha * (produced - mean)


class Oracle(PredictorPart):
    """Perfect lengths, given by the backend in `predicted` before arrival (--oracle): an upper
    bound."""
