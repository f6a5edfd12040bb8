"""Bodies that tests name as `sim_bodies:function`."""

from __future__ import annotations

from batchgen.coroutine import DECODE, Body, Extend, Outcome, SequenceView, Wait


def twice(sequence: SequenceView) -> Body:
    """Extends every row once, after a wait at the end of the prompt."""
    outcome = yield DECODE
    while True:
        if outcome is Outcome.PROMPT_DONE and not sequence.stage:
            outcome = yield Wait(0.25)
        elif outcome is Outcome.FINISHED:
            if sequence.stage:
                return
            outcome = yield Extend(10, 30)
        else:
            outcome = yield DECODE


def reads(sequence: SequenceView) -> Body:
    """Wants a text."""
    outcome = yield DECODE
    while outcome is not Outcome.FINISHED:
        outcome = yield DECODE
    if sequence.row % 2:
        yield Extend(len(sequence.answer), 5)


def asks(sequence: SequenceView) -> Body:
    """Extends by a text."""
    outcome = yield DECODE
    while outcome is not Outcome.FINISHED:
        outcome = yield DECODE
    yield Extend("what?", 5)


def rests(sequence: SequenceView) -> Body:
    """Sleeps for half a second when its generation has ended, and ends."""
    outcome = yield DECODE
    while outcome is not Outcome.WOKEN:
        outcome = yield Wait(0.5) if outcome is Outcome.FINISHED else DECODE


NOT_A_BODY = 5
