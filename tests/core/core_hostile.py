"""Bodies that do what no body should, to every third row; tests name them `core_hostile:NAME`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from batchgen.coroutine import DECODE, Body, BodyFactory, End, Extend, Outcome, SequenceView, Wait

ODD = "a\ud800b\n\x1b[31mred"


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Hidden(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError("no name")


class Nameless(Exception, metaclass=Hidden):
    pass


class NoRepr:
    def __repr__(self) -> str:
        raise SystemExit(0)


class NoClass:
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise ValueError("no class")


class OddRepr:
    def __repr__(self) -> str:
        return ODD


class OddText(str):
    def split(self, *_: Any) -> list[str]:  # type: ignore[override]
        raise ValueError("no split")


class Ruin(BaseException):
    pass


def _raising(error: Callable[[], BaseException]) -> BodyFactory:
    return _with(lambda _: _raise(error()))


def _raise(error: BaseException) -> Any:
    raise error


def _with(ask: Callable[[SequenceView], Any]) -> BodyFactory:
    """Ask for something odd when the generation ends."""

    def body(sequence: SequenceView) -> Body:
        outcome = yield DECODE
        while outcome not in (Outcome.FINISHED, Outcome.WOKEN):
            outcome = yield DECODE
        if sequence.row % 3 == 0:
            yield ask(sequence)

    return body


mute = _raising(Mute)
nameless = _raising(Nameless)
odd_text = _raising(lambda: ValueError(ODD))
odd_class = _raising(lambda: ValueError(OddText(ODD)))
leaves = _raising(SystemExit)
ruins = _raising(Ruin)
exits = _raising(GeneratorExit)
no_repr = _with(lambda _: NoRepr())
no_class = _with(lambda _: NoClass())
odd_repr = _with(lambda _: OddRepr())
odd_follow_up = _with(lambda _: Extend("\ud800", 4))
huge_budget = _with(lambda _: Extend(4, 10**5000))
huge_follow_up = _with(lambda _: Extend(10**5000, 4))
odd_wait = _with(lambda _: Wait(NoRepr()))  # type: ignore[arg-type]


def refuses(sequence: SequenceView) -> Body:
    """Yields when it is closed, for ever."""
    if sequence.row % 3:
        return
    while True:
        try:
            outcome = yield DECODE
            while True:
                outcome = yield End() if outcome is Outcome.FINISHED else DECODE
        except GeneratorExit:
            continue


def raises_at_the_end(sequence: SequenceView) -> Body:
    try:
        outcome = yield DECODE
        while outcome is not Outcome.FINISHED:
            outcome = yield DECODE
        yield End()
    finally:
        if sequence.row % 3 == 0:
            raise Mute


def sleeps_long(sequence: SequenceView) -> Body:
    """Waits that no clock of 64 bits can hold."""
    outcome = yield DECODE
    while outcome not in (Outcome.FINISHED, Outcome.WOKEN):
        outcome = yield DECODE
    for _ in range(20 if sequence.row % 3 == 0 else 0):
        yield Wait(1e6)


def never_sleeps(sequence: SequenceView) -> Body:
    """Waits for nothing, for ever."""
    outcome = yield DECODE
    while outcome not in (Outcome.FINISHED, Outcome.WOKEN):
        outcome = yield DECODE
    while sequence.row % 3 == 0:
        yield Wait(0)


def polls(sequence: SequenceView) -> Body:
    """Waits often, and longer than nothing: an honest body."""
    outcome = yield DECODE
    while outcome not in (Outcome.FINISHED, Outcome.WOKEN):
        outcome = yield DECODE
    for _ in range(1500):
        yield Wait(0.00001)


def talks(sequence: SequenceView) -> Body:
    """Prints, and goes elsewhere: an honest body but for that."""
    print(f"row {sequence.row} begins")
    sys.stdout.write("and says so\n")
    os.chdir("/")
    outcome = yield DECODE
    while outcome is not Outcome.FINISHED:
        outcome = yield DECODE


BREAK: dict[str, str] = {
    "mute": "its body raised Mute: (Mute without a text)",
    "nameless": "its body raised Nameless",
    "odd_text": r"its body raised ValueError: a\ud800b \x1b[31mred",
    "odd_class": r"its body raised ValueError: a\ud800b \x1b[31mred",
    "leaves": "its body raised SystemExit",
    "ruins": "its body raised Ruin",
    "exits": "its body raised GeneratorExit",
    "no_repr": "its body yielded (NoRepr that cannot be printed) after FINISHED",
    "no_class": "its body raised ValueError: no class",
    "odd_repr": r"its body yielded a\ud800b \x1b[31mred after FINISHED",
    "odd_follow_up": "",  # other words with text and without
    "huge_budget": "its body yielded (Extend that cannot be printed); both need at least 1 token",
    "huge_follow_up": "its body yielded (Extend that cannot be printed); both need at least",
    "odd_wait": "its body yielded (Wait that cannot be printed); a wait is 0 to 1e6 seconds",
    "refuses": "its body raised RuntimeError: generator ignored GeneratorExit",
    "raises_at_the_end": "its body raised Mute: (Mute without a text)",
    "sleeps_long": "its body waits 1e+06 s at ",
    "never_sleeps": "its body waited 1000 times with no token between",
}
"""Body -> how the reason of its rows begins."""
