"""Bodies that tests name as `valid_bodies:function`. They look at ids and at text."""

from __future__ import annotations

from batchgen.coroutine import DECODE, END, Body, Extend, Outcome, SequenceView, Wait


def rounds(sequence: SequenceView) -> Body:
    """Up to three rounds: how often, how long and after which wait hangs on what was generated."""
    outcome = yield DECODE
    while True:
        if outcome is Outcome.FINISHED and sequence.stage < sum(sequence.answer_ids) % 4:
            if len(sequence.answer_ids) % 2:
                outcome = yield Wait(sequence.answer_ids[0] * 1e-6)
            else:
                outcome = yield ask(sequence)
        elif outcome is Outcome.FINISHED:
            return
        else:
            outcome = yield ask(sequence) if outcome is Outcome.WOKEN else DECODE


def ask(sequence: SequenceView) -> Extend:
    """Some of its own ids again, or a text."""
    budget = 1 + len(sequence.answer_ids) % 30
    if sequence.row % 3:
        return Extend([token % 256 for token in sequence.answer_ids][:9], budget)
    return Extend(f"{len(sequence.answers)}{sequence.prompt[:5]}", budget)


def rests(sequence: SequenceView) -> Body:
    """Sleeps when its generation has ended, and ends; one that ends at once among them."""
    outcome = yield DECODE
    while outcome is not Outcome.WOKEN:
        if outcome is Outcome.FINISHED and sequence.row % 4 == 0:
            return
        outcome = yield Wait(1e-3 * sequence.row) if outcome is Outcome.FINISHED else DECODE


def moody(sequence: SequenceView) -> Body:
    """Every fourth row each: sleeps after its prompt and is called off there; sleeps there and goes
    on; ends with its first token; breaks."""
    outcome = yield DECODE
    kind = sequence.row % 4
    while outcome is not Outcome.FINISHED:
        if outcome is Outcome.PROMPT_DONE and not sequence.stage:
            if kind == 2:
                return
            if kind == 3:
                outcome = yield Wait(1e-4 * sequence.row)
                if sequence.row % 8 == 3 and outcome is Outcome.WOKEN:
                    outcome = yield Extend([1, 2, 3], 5)
                continue
            if kind == 1 and sum(sequence.answer_ids) % 2:
                raise LookupError("no such row")
        outcome = yield DECODE
    yield END
