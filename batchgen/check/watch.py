"""A part under watch: its exceptions are caught with their place, its answers looked at, and the
books compared before and after it was asked. It answers as the part does.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from batchgen.check.books import books, change, plain
from batchgen.check.limit import TimeUp
from batchgen.errors import UserError
from batchgen.oneline import named, one_line
from batchgen.policy.answers import ASKED, wrong
from batchgen.policy.base import Part
from batchgen.runtime.core import Runtime

CALLS_COMPARED = 25
"""Calls of each method of a run around which the books are compared; the others are only heard."""

MOST_TOLD = 400
"""Characters of an exception's text."""

MAY_CHANGE: dict[str, frozenset[str]] = {
    "on_arrival": frozenset({"table.predicted", "cluster.predictions"}),
    "on_completion": frozenset({"cluster.predictions"}),
}
"""The books that a method is there to write."""


class Violation(Exception):
    """A part does what no part may. `kind` names the property that does not hold."""

    def __init__(self, kind: str, slot: str, text: str) -> None:
        self.kind, self.slot, self.text = kind, slot, text
        super().__init__(text)


class Watch:
    """Looks after the parts of one run. `runtime` is told when there is one.

    hung: slot and method of the part that was asked when the time was up.
    """

    def __init__(self, *, compares: bool = True) -> None:
        self.runtime: Runtime | None = None
        self.hung = ("", "")
        self.calls: Counter[tuple[str, str]] = Counter()
        self._compares = compares
        self._inside = False
        self._parts: list[tuple[Part, dict[str, Any]]] = []

    def make(self, cls: type[Part], config: Any, changes: str = "") -> Part:
        """A part of a class, under watch; changes: another declaration than its own, for a try."""
        try:
            part = _subclass(cls, self, changes)(config)
        except TimeUp:
            self.hung = cls.slot, "making it"
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Violation("exception", cls.slot, f"making it raised {told(error)}") from error
        self._parts.append((part, remembered(part, cls)))
        return part

    def ask(self, part: Part, name: str, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Ask a part, and look at what it did."""
        slot = part.slot
        if self._inside:  # by another part's call
            answer = method(*args)
            if problem := wrong(part, name, args, answer):
                raise Violation("answer", slot, f"{name} answered: {problem}")
            return answer
        self.calls[slot, name] += 1
        compares = self._compares and self.calls[slot, name] <= CALLS_COMPARED
        before = books(self.runtime) if compares and self.runtime is not None else {}
        lists = [plain(one) for one in args if isinstance(one, list)]
        self._inside = True
        try:
            answer = method(*args)
            problem = wrong(part, name, args, answer)
        except TimeUp:
            self.hung = slot, name
            raise
        except (UserError, Violation, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too
            raise Violation("exception", slot, f"{name} raised {told(error)}") from error
        finally:
            self._inside = False
        if problem:
            raise Violation("answer", slot, f"{name} answered: {problem}")
        if before:
            assert self.runtime is not None
            self._compare(part, name, before, books(self.runtime))
        if lists != [plain(one) for one in args if isinstance(one, list)]:
            raise Violation("purity", slot, f"{name} changed the list that it was given")
        return answer

    def _compare(
        self, part: Part, name: str, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        may = MAY_CHANGE.get(name, frozenset())
        for key in {**before, **after}:
            if key not in may and before.get(key) != after.get(key):
                text = change(before.get(key), after.get(key), key)
                raise Violation("purity", part.slot, f"{name} wrote {text}")

    def check_memory(self) -> None:
        """Raise Violation when a part remembers anything of the run, in itself, its class or its
        module."""
        for part, before in self._parts:
            text = change(before, remembered(part, type(part).__mro__[1]))
            if text:
                raise Violation("state", part.slot, f"it remembers: {text}")


def _subclass(cls: type[Part], watch: Watch, changes: str) -> type[Part]:
    """A subclass of the part's class that asks through the watch."""
    body: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    body["watched"] = True
    if changes:
        body["changes"] = changes
    found: type[Part] = type(cls.__name__, (cls,), body)
    for name in ASKED[cls.slot]:
        attribute = inspect.getattr_static(cls, name, None)
        if inspect.isroutine(attribute):
            setattr(found, name, _method(found, name, watch))
        elif hasattr(attribute, "__get__"):
            setattr(found, name, property(_getter(found, name, watch)))
    return found


def _method(found: type[Part], name: str, watch: Watch) -> Callable[..., Any]:
    def asked(self: Any, *args: Any) -> Any:
        return watch.ask(self, name, getattr(super(found, self), name), args)

    return asked


def _getter(found: type[Part], name: str, watch: Watch) -> Callable[[Any], Any]:
    def asked(self: Any) -> Any:
        return watch.ask(self, name, lambda: getattr(super(found, self), name), ())

    return asked


def remembered(part: Part, cls: type[Part]) -> dict[str, Any]:
    """All that a part could keep between calls, as plain values: its attributes, those of its
    classes, and the variables of its module."""
    found = {f"self.{name}": plain(value) for name, value in vars(part).items()}
    for one in cls.__mro__:
        if one.__module__ == Part.__module__ or one is object:
            continue
        for name, value in vars(one).items():
            if not name.startswith("__") and _is_data(value, one.__module__):
                found[f"{one.__name__}.{name}"] = plain(value)
    module = sys.modules.get(cls.__module__)
    for name, value in vars(module).items() if module is not None else ():
        if not name.startswith("__") and _is_data(value, cls.__module__):
            found[f"{cls.__module__}.{name}"] = plain(value)
    return found


def _is_data(value: Any, module: str) -> bool:
    """Whether a variable may hold what was seen: plain data, or an object of the module's own."""
    plain_data = (int, float, str, bytes, list, dict, set, tuple, type(None))
    places = ("collections", "random", "itertools", "array", module)
    return isinstance(value, plain_data) or (
        type(value).__module__ in places and not inspect.isroutine(value)
    )


def told(error: BaseException) -> str:
    """An exception and where it came from, in one line."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return named(error, MOST_TOLD)
    where = one_line(f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}")
    return f"{named(error, MOST_TOLD)} ({where})"
