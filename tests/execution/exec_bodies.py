"""Bodies that tests name as `exec_bodies:NAME`."""

from __future__ import annotations

from batchgen.coroutine import DECODE, Body, Extend, Outcome, SequenceView, Wait


def turns(sequence: SequenceView) -> Body:
    """Two follow-ups for most rows, of ids that hang on the answer; some after a wait."""
    outcome = yield DECODE
    while True:
        if outcome is Outcome.FINISHED and sequence.stage < 2 and sequence.row % 4:
            if sequence.row % 2:
                outcome = yield Wait(0.01 * sequence.row)
                continue
        elif outcome is Outcome.FINISHED:
            return
        elif outcome is not Outcome.WOKEN:
            outcome = yield DECODE
            continue
        answer = [*sequence.answer_ids]
        outcome = yield Extend([(7 * token) % 256 for token in answer][:23], 5 + len(answer) % 20)


def turns_by_id(sequence: SequenceView) -> Body:
    """One follow-up for each row, of the text of its answer."""
    outcome = yield DECODE
    while True:
        if outcome is Outcome.FINISHED and sequence.stage < 1:
            outcome = yield Extend(f"{sequence.answer}?"[:20], 12)
        elif outcome is Outcome.FINISHED:
            return
        else:
            outcome = yield DECODE
