"""What rows of a simulation do after their first output: bodies, and the lengths they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.bodyname import load_body
from batchgen.coroutine import BodyFactory
from batchgen.errors import UserError
from batchgen.rounds import ROUNDS, rounds, within

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.trace.table import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Further:
    """name: of the bodies, for the log. outputs: true output tokens of a row's stage, from 1."""

    name: str
    bodies: BodyFactory
    outputs: Callable[[int, int], int]


def further_stages(
    trace: Trace, budgets: NDArray[np.int32], max_context: int, body: str | None
) -> Further | None:
    """Bodies of a trace whose rows have stages, or the body of that name; None if rows end with
    their first output. Raises UserError for a name that leads to no body."""
    stages = trace.stages
    if stages is None:
        if body is None:
            return None
        none = [0] * len(trace)
        return Further(name=body, bodies=within(load_body(body), none), outputs=lambda _, __: 1)
    lengths = true_outputs(trace, budgets)
    assert lengths is not None
    first = stages.offsets

    def output(row: int, stage: int) -> int:
        return int(lengths[first[row] + stage - 1])

    if body is None:
        allowed: Sequence[int] = budgets.tolist()
        factory = rounds(stages, allowed, max_context)
    else:
        factory = within(load_body(body), stages.counts.tolist())
    return Further(name=body or ROUNDS, bodies=factory, outputs=output)


def true_outputs(trace: Trace, budgets: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """Output tokens of every further stage, cut to its row's budget."""
    if trace.stages is None:
        return None
    return np.minimum(trace.stages.output_tokens, budgets[trace.stages.rows])


def total_outputs(trace: Trace, budgets: NDArray[np.int32]) -> NDArray[np.int64]:
    """Output tokens of every row, all its stages together."""
    totals = np.minimum(trace.output_tokens, budgets).astype(np.int64)
    more = true_outputs(trace, budgets)
    if trace.stages is None or more is None:
        return totals
    return totals + trace.stages.per_row(more)


def check_conversations(
    trace: Trace, budgets: NDArray[np.int32], max_context: int, model: str, path: str
) -> None:
    """Refuse a row whose stages come to more than the model's context; names the first such."""
    stages = trace.stages
    if stages is None:
        return
    totals: NDArray[Any] = trace.prompt_tokens + stages.per_row(stages.prompt_tokens)
    totals = totals + total_outputs(trace, budgets)
    too_long = np.flatnonzero((totals > max_context) & (stages.counts > 0))
    if len(too_long):
        row = int(too_long[0])
        raise UserError(
            f"{path}: row {row} comes to {totals[row]} tokens in {stages.counts[row] + 1} stages, "
            f"{model} takes {max_context} in all ({len(too_long)} such rows)",
            remedy="drop those rows or choose a model with a longer context",
            code="context_length_exceeded",
        )
