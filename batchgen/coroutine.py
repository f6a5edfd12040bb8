"""Sequence coroutines: the body that every sequence runs, what it may ask for and what it sees.

`batchgen.bodies` resumes them; `batchgen.runtime.cluster.obey` does what they ask for.

A body is a generator function of a `SequenceView`. It keeps nothing between suspensions that is not
in the row, so it may be dropped at any suspension and made anew. It yields a request and is resumed
with what happened, at stage changes only, never per pass. What it yields is obeyed:

    Decode()               go on: generate until a stop token or the budget
    Extend(tokens, budget) after FINISHED: append a follow-up and generate again on the same KV
    Wait(seconds)          after PROMPT_DONE or FINISHED: sleep, then be resumed with WOKEN
    End(), or a return     end the row (before its generation has ended: reason "body")

The default body asks for nothing but `Decode` and costs nothing: no generator is made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

from batchgen.sequence import Table
from batchgen.units import to_ps


class Outcome(IntEnum):
    """Why a sequence is resumed."""

    PROMPT_DONE = 0  # every known token has KV and a new token was sampled
    SUSPENDED = 1  # it yielded; its KV is, or is going, to a lower tier
    RESUMED = 2  # its KV is back
    LOST = 3  # its KV is gone everywhere; its known tokens will be prefilled again
    FINISHED = 4  # its generation ended: a stop token, or the budget
    WOKEN = 5  # the time that it waited for has come


@dataclass(frozen=True, slots=True)
class Decode:
    """Go on."""


@dataclass(frozen=True, slots=True)
class Extend:
    """Append `tokens` (a text, ids, or their number where there is no text) and generate up to
    `budget` further tokens on the same KV."""

    tokens: int | str | Sequence[int]
    budget: int

    @property
    def count(self) -> int:
        return self.tokens if isinstance(self.tokens, int) else len(self.tokens)


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep for some time of the run's clock; then the body is resumed with WOKEN."""

    seconds: float | Fraction

    @property
    def delay_ps(self) -> int:
        return to_ps(self.seconds)


@dataclass(frozen=True, slots=True)
class End:
    """Nothing more."""


Request = Decode | Extend | Wait | End
Body = Generator[Request, Outcome, None]
DECODE, END = Decode(), End()

# What a body may ask for when it is resumed with an outcome (None: when it begins).
ALLOWED: dict[Outcome | None, tuple[type, ...]] = {
    None: (Decode, End),
    Outcome.PROMPT_DONE: (Decode, Wait, End),
    Outcome.SUSPENDED: (Decode, End),
    Outcome.RESUMED: (Decode, End),
    Outcome.LOST: (Decode, End),
    Outcome.FINISHED: (Extend, Wait, End),
    Outcome.WOKEN: (Decode, Extend, Wait, End),
}


class BodyError(Exception):
    """A body raised, or asked for what it may not; the text says what."""


NO_TEXT = "its body reads text, and a simulation has none"


class SequenceView:
    """What a body may know of its row. What has to do with text is there in `exec` only
    (`has_text`); without it reading text raises BodyError."""

    has_text = False

    def __init__(self, table: Table, row: int) -> None:
        self._table = table
        self.row = row

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens, follow-ups included."""
        return self._table.v_prompt[self.row]

    @property
    def produced_tokens(self) -> int:
        """Tokens generated so far, over all stages."""
        return self._table.v_produced[self.row]

    @property
    def stage(self) -> int:
        """Follow-ups appended so far: 0 while the first answer is generated."""
        return self._table.v_stage[self.row]

    @property
    def custom_id(self) -> str:
        """The row's id in the input file."""
        raise BodyError(NO_TEXT)

    @property
    def request(self) -> dict[str, Any]:
        """The row as it stands in the input file, fields of its owner included."""
        raise BodyError(NO_TEXT)

    @property
    def prompt(self) -> str:
        """The prompt's text, as the model sees it."""
        raise BodyError(NO_TEXT)

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Ids of the prompt, follow-ups left out."""
        raise BodyError(NO_TEXT)

    @property
    def answer(self) -> str:
        """What the current stage has generated so far; all of it once its generation ended."""
        raise BodyError(NO_TEXT)

    @property
    def answer_ids(self) -> Sequence[int]:
        """Ids that the current stage has generated so far, a stop token included."""
        raise BodyError(NO_TEXT)

    @property
    def answers(self) -> list[str]:
        """Texts of all stages, the current one last."""
        raise BodyError(NO_TEXT)

    def ids(self, tokens: str | Sequence[int]) -> Sequence[int]:
        """Ids of a follow-up; raises BodyError for what is none here."""
        if isinstance(tokens, str):
            raise BodyError("its body extends by a text, a simulation takes a number of tokens")
        return tokens


BodyFactory = Callable[[SequenceView], Body]
MakeView = Callable[[Table, int], SequenceView]


def default_body(sequence: SequenceView) -> Body:
    """Prefill, decode until the end, and start over whenever the KV is lost."""
    while True:
        outcome = yield DECODE
        if outcome is Outcome.FINISHED:
            return
