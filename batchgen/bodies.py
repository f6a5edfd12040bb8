"""Resumes the bodies of rows, or says again what bodies said in another run. It obeys nothing."""

from __future__ import annotations

import atexit
import inspect
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
from batchgen.oneline import named, one_line, shown
from batchgen.sequence import Table
from batchgen.units import PS_PER_S

MOST_WAIT_S = 1e6
MOST_TOKENS = 2**31 - 1
"""Of a follow-up, and of a budget: what the sequence table can count."""
MOST_WHY = 400
"""Characters of what a body says went wrong."""


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
        if row not in self._live and self._make(row) is END:
            return END
        body = self._live[row]
        try:
            request = body.send(outcome)
        except StopIteration:
            del self._live[row]
            return END
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            del self._live[row]
            raise _broken(error) from None
        return self._obeyed(row, outcome, request)

    def _make(self, row: int) -> Request:
        try:
            body = self._factory(self._view(self._table, row))
            request = next(body)
        except StopIteration:
            return END
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _broken(error) from None
        self._live[row] = body
        return self._obeyed(row, None, request)

    def _obeyed(self, row: int, outcome: Outcome | None, request: Request) -> Request:
        """The request, made anew of plain values: what a body yields may be of any class. A body
        that ends its row is closed here, while its row can still fail for it."""
        try:
            asked = self._checked(row, outcome, request)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _broken(error) from None
        if asked is END:
            close(self._live.pop(row))
        return asked

    def _checked(self, row: int, outcome: Outcome | None, request: Request) -> Request:
        if type(request) is Decode and outcome is not Outcome.FINISHED:
            return DECODE
        allowed = ALLOWED[outcome]
        if not isinstance(request, allowed):
            if outcome is Outcome.FINISHED and isinstance(request, Decode):
                return END  # nothing is left to go on with
            names = ", ".join(kind.__name__ for kind in allowed)
            told = "when it begins" if outcome is None else f"after {outcome.name}"
            raise BodyError(f"its body yielded {shown(request)} {told}; it may yield {names}")
        if isinstance(request, Extend):
            return self._extension(row, request)
        if isinstance(request, Wait):
            if not (isinstance(request.seconds, Real) and 0 <= request.seconds <= MOST_WAIT_S):
                raise BodyError(f"its body yielded {shown(request)}; a wait is 0 to 1e6 seconds")
            return Wait(Fraction(int(request.delay_ps), PS_PER_S))
        return DECODE if isinstance(request, Decode) else END

    def _extension(self, row: int, request: Extend) -> Extend:
        """The request with ids for a text."""
        tokens, budget = request.tokens, request.budget
        if not isinstance(tokens, int | str | Sequence) or not isinstance(budget, int):
            raise BodyError(f"its body yielded {shown(request)}; give a text or ids, and a budget")
        budget = int(budget)
        if isinstance(tokens, int):
            tokens = int(tokens)
        else:
            self.follow_ups[row] = tokens = list(self._view(self._table, row).ids(tokens))
        asked = Extend(tokens, budget)
        if not (1 <= asked.count <= MOST_TOKENS and 1 <= budget <= MOST_TOKENS):
            raise BodyError(
                f"its body yielded {shown(request)}; both need at least 1 token, and at most "
                f"{MOST_TOKENS}"
            )
        return asked

    def live(self) -> list[int]:
        """Rows that have a generator now."""
        return list(self._live)

    def drop(self, row: int) -> None:
        """Forget the generator; the next resume makes it anew from the row."""
        body = self._live.pop(row, None)
        if body is not None:
            with suppress(BodyError):
                close(body)

    def forget(self, row: int) -> None:
        """The row has ended; what its body says to that changes nothing any more."""
        self.drop(row)
        self._calls.pop(row, None)


def close(body: Body) -> None:
    """Close a generator of a user. Raises BodyError when it raises then, or refuses."""
    try:
        body.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if inspect.getgeneratorstate(body) != inspect.GEN_CLOSED:
            _keep(body)
        raise _broken(error) from None


_stubborn: list[Body] = []
"""Bodies that yield when they are closed. Python would close them again, and complain, as soon as
nobody has them."""


def _keep(body: Body) -> None:
    """Until the process ends."""
    if not _stubborn:
        atexit.register(_let_go)
    _stubborn.append(body)


def _let_go() -> None:
    """Python's complaints go nowhere: each of these bodies has failed its row by name."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    _stubborn.clear()
    sys.unraisablehook = hook


def _broken(error: BaseException) -> BodyError:
    if isinstance(error, BodyError):
        return BodyError(one_line(error, MOST_WHY))
    return BodyError(f"its body raised {named(error)}")


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
