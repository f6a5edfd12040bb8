"""Resumes the bodies of rows, or says again what bodies said in another run. It obeys nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Real

import msgspec

from batchgen.coroutine import (
    ALLOWED,
    DECODE,
    END,
    Body,
    BodyError,
    BodyFactory,
    Decode,
    Extend,
    MakeView,
    Outcome,
    Request,
    SequenceView,
    Wait,
    default_body,
)
from batchgen.sequence import Table
from batchgen.units import PS_PER_S


class Said(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a body asked for when it was resumed for the `call`-th time (from 0); `Decode` is not
    said. what: "extend" (tokens, budget), "wait" (delay_ps), "end" or "fail" (why)."""

    row: int
    call: int
    what: str
    tokens: int = 0
    budget: int = 0
    delay_ps: int = 0
    why: str = ""


class Bodies:
    """Makes, resumes and drops the bodies of rows. Made only when there is a factory.

    follow_ups: ids of the last `Extend` of a row, for a backend with text. said: what bodies asked
    for since somebody took it; None while nobody does.
    """

    __slots__ = ("_calls", "_factory", "_live", "_table", "_view", "follow_ups", "said")

    def __init__(self, table: Table, factory: BodyFactory, view: MakeView = SequenceView) -> None:
        self._table = table
        self._factory = factory
        self._view = view
        self._live: dict[int, Body] = {}
        self._calls: dict[int, int] = {}
        self.follow_ups: dict[int, Sequence[int]] = {}
        self.said: list[Said] | None = None

    def start(self, row: int) -> Request:
        """The row becomes active: make its body and ask what it wants. Raises BodyError."""
        return self._call(row, None)

    def resume(self, row: int, outcome: Outcome) -> Request:
        """Tell the body what happened; returns what it wants. Raises BodyError."""
        return self._call(row, outcome)

    def _call(self, row: int, outcome: Outcome | None) -> Request:
        call = self._calls.get(row, 0)
        self._calls[row] = call + 1
        try:
            request = self._ask(row, outcome, call)
        except BodyError as error:
            if self.said is not None:
                self.said.append(Said(row, call, "fail", why=str(error)))
            raise
        if self.said is not None and not isinstance(request, Decode):
            self.said.append(_said(row, call, request))
        return request

    def _ask(self, row: int, outcome: Outcome | None, call: int) -> Request:
        """What the body of the row wants; `call` counts its resumptions."""
        if outcome is None:
            return DECODE if row in self._live else self._make(row)
        if row not in self._live and self._make(row) == END:
            return END
        body = self._live[row]
        try:
            request = body.send(outcome)
        except StopIteration:
            del self._live[row]
            return END
        except Exception as error:
            del self._live[row]
            raise _broken(error) from None
        return self._checked(row, outcome, request)

    def _make(self, row: int) -> Request:
        try:
            body = self._factory(self._view(self._table, row))
            request = next(body)
        except StopIteration:
            return END
        except Exception as error:
            raise _broken(error) from None
        self._live[row] = body
        return self._checked(row, None, request)

    def _checked(self, row: int, outcome: Outcome | None, request: Request) -> Request:
        allowed = ALLOWED[outcome]
        if not isinstance(request, allowed):
            if outcome is Outcome.FINISHED and isinstance(request, Decode):
                return END  # nothing is left to go on with
            names = ", ".join(kind.__name__ for kind in allowed)
            told = "when it begins" if outcome is None else f"after {outcome.name}"
            raise BodyError(f"its body yielded {request!r:.60} {told}; it may yield {names}")
        if isinstance(request, Extend):
            return self._extension(row, request)
        if isinstance(request, Wait) and not (
            isinstance(request.seconds, Real) and 0 <= request.seconds <= 1e6
        ):
            raise BodyError(f"its body yielded {request!r:.60}; a wait is 0 to 1e6 seconds")
        return request

    def _extension(self, row: int, request: Extend) -> Extend:
        """The request with ids for a text."""
        tokens, budget = request.tokens, request.budget
        if not isinstance(tokens, int | str | Sequence) or not isinstance(budget, int):
            raise BodyError(f"its body yielded {request!r:.60}; give a text or ids, and a budget")
        if not isinstance(tokens, int):
            self.follow_ups[row] = tokens = self._view(self._table, row).ids(tokens)
        asked = Extend(tokens, budget)
        if asked.count < 1 or budget < 1:
            raise BodyError(f"its body yielded {request!r:.60}; both need at least 1 token")
        return asked

    def live(self) -> list[int]:
        """Rows that have a generator now."""
        return list(self._live)

    def drop(self, row: int) -> None:
        """Forget the generator; the next resume makes it anew from the row."""
        body = self._live.pop(row, None)
        if body is not None:
            body.close()

    def forget(self, row: int) -> None:
        """The row has ended."""
        self.drop(row)
        self._calls.pop(row, None)


def _broken(error: Exception) -> BodyError:
    if isinstance(error, BodyError):
        return error
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return BodyError(f"its body raised {text:.200}")


def _said(row: int, call: int, request: Request) -> Said:
    if isinstance(request, Extend):
        return Said(row, call, "extend", tokens=request.count, budget=request.budget)
    if isinstance(request, Wait):
        return Said(row, call, "wait", delay_ps=request.delay_ps)
    return Said(row, call, "end")


class Scripted(Bodies):
    """Says what the bodies of another run said, whatever they looked at to say it.

    With it a run goes as the other did, without its text: a replay, or a simulation of what the
    executor did. `hear` adds to the script.
    """

    __slots__ = ("_script",)

    def __init__(self, table: Table, script: Iterable[Said] = ()) -> None:
        super().__init__(table, default_body)
        self._script: dict[tuple[int, int], Said] = {}
        self.hear(script)

    def hear(self, script: Iterable[Said]) -> None:
        """More of what was said."""
        for said in script:
            self._script[said.row, said.call] = said

    def _ask(self, row: int, outcome: Outcome | None, call: int) -> Request:
        said = self._script.pop((row, call), None)
        if said is None:
            return DECODE
        if said.what == "extend":
            return Extend(said.tokens, said.budget)
        if said.what == "wait":
            return Wait(Fraction(said.delay_ps, PS_PER_S))
        if said.what == "fail":
            raise BodyError(said.why)
        return END
