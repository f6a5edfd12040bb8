"""A part of somebody else, as the machines ask it: answers are plain ints and bools, and what it
raises is one line that names it. It decides nothing.

The compiled machines take no numpy integer for an int, and parts read numpy columns; and an error
in a part is no bug in batchgen.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from batchgen.errors import BatchgenError, UserError
from batchgen.oneline import named
from batchgen.policy.answers import ASKED, wrong
from batchgen.policy.base import Part


def _whole(answer: Any) -> int:
    return int(operator.index(answer))  # a bool becomes 0 or 1: logs tell them apart


def _slots(answer: Any) -> Any:
    return [(_whole(row), (_whole(engine), _whole(rank))) for row, (engine, rank) in answer]


def _same(answer: Any) -> Any:
    return answer


PLAIN: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("key", "lane", "lease", "rank_victim", "work", "end", "pace"), _whole),
    **dict.fromkeys(("room", "room_for", "starts_prefill", "gathered", "takes", "copies"), bool),
    **dict.fromkeys(("is_slow", "is_late"), bool),
    "place": _slots,
}
"""What answers become; others stay as they are."""


class Foreign:
    """A part whose calls are guarded; everything else is the part's own."""

    def __init__(self, part: Part) -> None:
        self._part = part
        # A part under watch raises what is found out about it.
        watched = getattr(type(part), "watched", False)
        for name in ASKED[part.slot]:
            if inspect.isroutine(getattr(type(part), name, None)):
                plain = PLAIN.get(name, _same)
                setattr(self, name, _asked(part, name, getattr(part, name), plain, watched))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def guarded(part: Part) -> Any:
    """The part itself, if it is one of ours."""
    ours = type(part).__module__.startswith("batchgen.policy.")
    return part if ours else Foreign(part)


def _asked(
    part: Part,
    name: str,
    method: Callable[..., Any],
    plain: Callable[[Any], Any],
    watched: bool,
) -> Callable[..., Any]:
    def asked(*args: Any) -> Any:
        try:
            answer = method(*args)
            problem = "" if watched else wrong(part, name, args, answer)
            if not problem:
                return plain(answer)
        except BatchgenError:
            raise
        except Exception as error:
            if watched:
                raise
            raise _of(part, f"{name} failed ({named(error)})") from error
        raise _of(part, f"{name} answered: {problem}")

    return asked


def _of(part: Part, what: str) -> UserError:
    return UserError(
        f"{part.slot} part {type(part).__name__}: {what}",
        remedy="mend it; 'batchgen policy check' looks for such cases",
        code="part",
    )


def declared(part: Part, name: str, plain: Callable[[Any], Any]) -> Any:
    """A declaration of a part, made plain. Raises UserError with its name if that cannot be."""
    try:
        return plain(getattr(part, name))
    except BatchgenError:
        raise
    except Exception as error:
        raise _of(part, f"{name} is no such declaration ({named(error)})") from error
