"""Bodies of rows whose numbers come in rounds, for `batchgen exec --body batchgen_rounds:NAME`.

A row asks the model for a sum. Its body brings more numbers, one round each: it appends the line
that the model would have begun itself, and the model goes on with its running total on the KV that
it has. A row's numbers stand in its column "later" (rows without it end as any other).
"""

from __future__ import annotations

from batchgen.coroutine import DECODE, Body, Extend, Outcome, SequenceView, Wait

TOTAL_TOKENS = 4  # a running total: four digits, the last one first
ANSWER_TOKENS = 7  # a new line, "=", four digits, the stop token
TOOL_S = 0.05


def prompted(sequence: SequenceView) -> Body:
    """Two and more stages without a pause: the next number is there at once."""
    outcome = yield DECODE
    while outcome is not Outcome.FINISHED or to_come(sequence):
        outcome = yield (next_number(sequence) if outcome is Outcome.FINISHED else DECODE)


def tool(sequence: SequenceView) -> Body:
    """A tool brings the next number: the row sleeps while it works, others take its place."""
    outcome = yield DECODE
    while outcome is not Outcome.FINISHED or to_come(sequence):
        if outcome is Outcome.FINISHED:
            outcome = yield Wait(TOOL_S)
        elif outcome is Outcome.WOKEN:
            outcome = yield next_number(sequence)
        else:
            outcome = yield DECODE


def to_come(sequence: SequenceView) -> list[int]:
    """Numbers that the row has not been given yet."""
    numbers: list[int] = sequence.request.get("later", [])
    return numbers[sequence.stage :]


def next_number(sequence: SequenceView) -> Extend:
    """The line that the model goes on with, and what it may say to it: a total; at the end the
    answer too."""
    last = len(to_come(sequence)) == 1
    place = len(sequence.request["messages"][-1]["content"].split()) - 1 + sequence.stage
    key = chr(ord("a") + place // 26) + chr(ord("a") + place % 26)
    line = f"\n{key}{to_come(sequence)[0]}" + ("." if last else " ")
    return Extend(line, TOTAL_TOKENS + (ANSWER_TOKENS if last else 0))
