"""Texts of users in one line that a terminal can show. Nothing here raises, whatever is shown: the
code of users may break `str` and `repr` too. It prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST_TEXT = 200
MOST_VALUE = 60
MOST_WORD = 160  # a path may be as long

_name: Any = type.__dict__["__name__"]  # a metaclass may hide it


def escaped(text: str) -> str:
    """What is no printable character (newlines, ESC, halves of surrogate pairs) as its escape."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def brief(text: str, most: int) -> str:
    """A text without its middles: of long words, which are numbers, names or values of users, and
    of the whole, so that at most so many characters are left."""
    words = (
        _middle_out(word, MOST_WORD) if len(word) > MOST_WORD else word for word in text.split(" ")
    )
    return _middle_out(" ".join(words), most)


def _middle_out(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    last = (most - 3) // 3
    return f"{text[: most - 3 - last]}...{text[-last:]}"


def one_line(value: object, most: int | None = None) -> str:
    """The text of anything, whitespace as single blanks, at most so many characters of it."""
    return escaped(_made(str, value, "without a text")[:most])


def shown(value: object, most: int = MOST_VALUE) -> str:
    """The `repr` of anything, cut."""
    return escaped(_made(repr, value, "that cannot be printed")[:most])


def _made(make: Callable[[object], str], value: object, otherwise: str) -> str:
    try:
        # `str` may return a subclass that is as odd as the value: the plain method splits it.
        return " ".join(str.split(make(value)))
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"({name_of(value)} {otherwise})"


def named(error: BaseException, most: int = MOST_TEXT) -> str:
    """An exception: its name and its text."""
    text = one_line(error, most)
    return f"{name_of(error)}: {text}" if text else name_of(error)


def name_of(value: object) -> str:
    """The name of the type of anything."""
    return escaped(str(_name.__get__(type(value))))[:MOST_VALUE]
