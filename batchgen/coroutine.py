"""Sequence coroutines: the body that every sequence runs, and the bookkeeper that resumes bodies.

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
    """Append `tokens` (ids, or their number where there is no text) and generate up to `budget`
    further tokens on the same KV."""

    tokens: int | Sequence[int]
    budget: int

    @property
    def count(self) -> int:
        return self.tokens if isinstance(self.tokens, int) else len(self.tokens)


@dataclass(frozen=True, slots=True)
class Wait:
    """Sleep for some time of the run's clock; then the body is resumed with WOKEN."""

    seconds: float

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


class SequenceView:
    """What a body may know of its row. A backend with text gives a richer one."""

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


BodyFactory = Callable[[SequenceView], Body]
MakeView = Callable[[Table, int], SequenceView]


def default_body(sequence: SequenceView) -> Body:
    """Prefill, decode until the end, and start over whenever the KV is lost."""
    while True:
        outcome = yield DECODE
        if outcome is Outcome.FINISHED:
            return


class BodyError(Exception):
    """A body raised, or asked for what it may not; the text says what."""


class Bodies:
    """Makes, resumes and drops the bodies of rows. Made only when there is a factory.

    follow_ups: ids of the last `Extend` of a row, for a backend with text.
    """

    __slots__ = ("_factory", "_live", "_table", "_view", "follow_ups")

    def __init__(self, table: Table, factory: BodyFactory, view: MakeView = SequenceView) -> None:
        self._table = table
        self._factory = factory
        self._view = view
        self._live: dict[int, Body] = {}
        self.follow_ups: dict[int, Sequence[int]] = {}

    def start(self, row: int) -> Request:
        """The row becomes active: make its body and ask what it wants. Raises BodyError."""
        if row in self._live:
            return DECODE
        try:
            body = self._factory(self._view(self._table, row))
            request = next(body)
        except StopIteration:
            return END
        except Exception as error:
            raise BodyError(f"its body raised {type(error).__name__}: {error}") from None
        self._live[row] = body
        return self._checked(row, None, request)

    def resume(self, row: int, outcome: Outcome) -> Request:
        """Tell the body what happened; returns what it wants. Raises BodyError."""
        if row not in self._live and self.start(row) == END:
            return END
        body = self._live[row]
        try:
            request = body.send(outcome)
        except StopIteration:
            del self._live[row]
            return END
        except Exception as error:
            del self._live[row]
            raise BodyError(f"its body raised {type(error).__name__}: {error}") from None
        return self._checked(row, outcome, request)

    def _checked(self, row: int, outcome: Outcome | None, request: Request) -> Request:
        allowed = ALLOWED[outcome]
        if not isinstance(request, allowed):
            if outcome is Outcome.FINISHED and isinstance(request, Decode):
                return END  # nothing is left to go on with
            names = ", ".join(kind.__name__ for kind in allowed)
            told = "when it begins" if outcome is None else f"after {outcome.name}"
            raise BodyError(f"its body yielded {request!r:.60} {told}; it may yield {names}")
        if isinstance(request, Extend):
            if request.count < 1 or request.budget < 1:
                raise BodyError(f"its body yielded {request!r:.60}; both need at least 1 token")
            if not isinstance(request.tokens, int):
                self.follow_ups[row] = request.tokens
        elif isinstance(request, Wait) and not 0 <= request.seconds <= 1e6:
            raise BodyError(f"its body yielded {request!r}; a wait is 0 to 1e6 seconds")
        return request

    def live(self) -> list[int]:
        """Rows that have a generator now."""
        return list(self._live)

    def drop(self, row: int) -> None:
        """Forget the generator; the next resume makes it anew from the row."""
        body = self._live.pop(row, None)
        if body is not None:
            body.close()
