"""What the rows of a trace produce on a model: within their budgets, and within its context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.errors import UserError
from batchgen.model import ModelSpec
from batchgen.planning import PlanOptions
from batchgen.simjob import SimJob
from batchgen.trace.table import Trace, output_budgets


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """budgets [n]: tokens that a row may produce in each of its stages, as a scheduler sees them.
    tokens [n]: what its first output truly comes to. num_cut: rows whose output is ended by the
    context. max_context: tokens that a row may come to."""

    budgets: NDArray[np.int32]
    tokens: NDArray[np.int32]
    num_cut: int
    max_context: int


def outputs_of(job: SimJob, trace: Trace, model: ModelSpec, options: PlanOptions) -> Outputs:
    """The outputs of a job. A row that would outgrow the context ends at it, as it does in an
    engine: its output and its budget are what its prompt leaves, so that it finishes for its
    length. Budgets of the other rows stay as they are asked for.

    Rows of several stages are not cut (`batchgen.sim.stages` refuses those that come to more).
    Raises UserError for a prompt that leaves no room for a token; names the first such row.
    """
    most = options.context_of(model)
    too_long = np.flatnonzero(trace.prompt_tokens >= most)
    if len(too_long):
        row = int(too_long[0])
        raise UserError(
            f"{job.trace}: row {row} has {trace.prompt_tokens[row]} prompt tokens, {model.name} "
            f"takes {most} in all ({len(too_long)} such rows)",
            remedy="drop those rows or choose a model with a longer context",
            code="context_length_exceeded",
        )
    budgets = output_budgets(trace, job.max_output_tokens)
    tokens = np.minimum(trace.output_tokens, budgets)
    room = most - trace.prompt_tokens
    is_cut = tokens > room
    if trace.stages is not None:
        is_cut &= trace.stages.counts == 0
    return Outputs(
        budgets=np.where(is_cut, room, budgets).astype(np.int32),
        tokens=np.where(is_cut, room, tokens).astype(np.int32),
        num_cut=int(is_cut.sum()),
        max_context=most,
    )
