"""The body of rows whose stages are known beforehand: a trace's. Knows lengths, reads no text."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from batchgen.bodies import close
from batchgen.coroutine import (
    DECODE,
    Body,
    BodyError,
    BodyFactory,
    Extend,
    Outcome,
    SequenceView,
    Wait,
)
from batchgen.units import PS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchgen.trace.stages import Stages

ROUNDS = "rounds"
"""The name of this body in logs."""


def rounds(stages: Stages, budgets: Sequence[int], max_context: int) -> BodyFactory:
    """Every row goes through its stages: wait, take the follow-up, generate again.

    Each stage asks for the budget of its row (never for its own length, which no scheduler knows),
    or for what is left of the context.
    """
    first = stages.offsets.tolist()
    follow_ups, waits = stages.prompt_tokens, stages.wait_ps

    def body(sequence: SequenceView) -> Body:
        row = sequence.row
        outcome = yield DECODE
        while True:
            stage = first[row] + sequence.stage
            if outcome not in (Outcome.FINISHED, Outcome.WOKEN):
                outcome = yield DECODE
            elif stage == first[row + 1]:
                return
            elif outcome is Outcome.FINISHED and waits[stage]:
                outcome = yield Wait(Fraction(int(waits[stage]), PS_PER_S))
            else:
                tokens = int(follow_ups[stage])
                room = max_context - sequence.prompt_tokens - sequence.produced_tokens - tokens
                outcome = yield Extend(tokens, min(budgets[row], room))

    return body


def within(factory: BodyFactory, num_stages: Sequence[int]) -> BodyFactory:
    """The same bodies, which may extend a row only as often as it has lengths."""

    def body(sequence: SequenceView) -> Body:
        inner = factory(sequence)
        try:
            request = next(inner)
            while True:
                if isinstance(request, Extend) and sequence.stage >= num_stages[sequence.row]:
                    raise BodyError(
                        f"its body extends for the {sequence.stage + 1}. time, the trace has "
                        f"{num_stages[sequence.row]} stages of it after the first"
                    )
                request = inner.send((yield request))
        except StopIteration:
            return
        finally:
            close(inner)

    return body
