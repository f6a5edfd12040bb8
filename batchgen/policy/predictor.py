"""Predictor parts: expected output lengths. A policy sees a true one with --oracle only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import cos, exp, log, pi, sqrt
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


class AskedLength(PredictorPart):
    """Rows that may produce at least `least_tokens` will produce just that many: a video of so many
    frames; of others nobody knows anything. Source: BlendServe (arXiv 2411.16102), section 5.1."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        least_tokens: int = option(2048, least=1, most=MOST_TOKENS)

    def on_arrival(self, table: Table, rows: Sequence[int], state: Any) -> None:
        for row in rows:
            if table.v_budget[row] >= self.config.least_tokens:
                table.v_predicted[row] = table.v_budget[row]


class OwnLength(PredictorPart):
    """A budget that hardly any other row has will be produced (a video of so many frames); one that
    many have is a cap, and says nothing.

    Hardly any: at most `most_share` of all rows that have come so far, this one among them.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        most_share: float = option(0.01, least=0, most=1)

    def new_state(self) -> Counter[int]:
        return Counter()

    def on_arrival(self, table: Table, rows: Sequence[int], state: Any) -> None:
        state.update(table.v_budget[row] for row in rows)
        most = self.config.most_share * state.total()
        for row in rows:
            if state[table.v_budget[row]] <= most:
                table.v_predicted[row] = table.v_budget[row]


class Oracle(PredictorPart):
    """Perfect lengths, given by the backend in `predicted` before arrival (--oracle): an upper
    bound."""

    needs = frozenset({"lengths"})


class Ranker(PredictorPart):
    """Lengths known with an error of a stated size: the true length, given by the backend
    (--oracle), times exp(`sigma` z), at least 1 and at most the row's budget. z is standard normal,
    fixed by row and `seed`; `sigma` 0 is `oracle`. The report has Kendall's tau of what is
    predicted."""

    needs = frozenset({"lengths"})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        sigma: float = option(1.0, least=0, most=10)
        seed: int = option(0, least=0, most=MOST_TOKENS)

    def on_arrival(self, table: Table, rows: Sequence[int], state: Any) -> None:
        for row in rows:
            true = table.v_predicted[row]
            guess = round(true * exp(self.config.sigma * normal(row, self.config.seed)))
            # A row of several stages may come to more than its budget, which is of the first.
            table.v_predicted[row] = min(max(guess, 1), max(table.v_budget[row], true))


def normal(row: int, seed: int) -> float:
    """A draw of the standard normal distribution, the same for a row and a seed everywhere."""
    digest = blake2b(b"%d:%d" % (seed, row), digest_size=16).digest()
    # Two numbers in (0, 1), by Box and Muller one normal: 53 bits each, as many as a float has.
    one, other = (
        ((int.from_bytes(half, "little") >> 11) + 0.5) / 2**53 for half in (digest[:8], digest[8:])
    )
    return sqrt(-2 * log(one)) * cos(2 * pi * other)
