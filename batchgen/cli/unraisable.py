"""What Python can raise nowhere: exceptions in finalisers, and in callbacks of C around forks or of
weak references. Python prints them and goes on, and so would a command that was interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_before: Callable[[sys.UnraisableHookArgs], Any] = sys.__unraisablehook__
_takers: list[Callable[[BaseException], bool]] = []


def take(taker: Callable[[BaseException], bool]) -> None:
    """Ask `taker` first; what it returns True for is not printed."""
    global _before
    _takers.append(taker)
    if sys.unraisablehook is not _hook:
        _before, sys.unraisablehook = sys.unraisablehook, _hook


def leave(taker: Callable[[BaseException], bool]) -> None:
    """Ask it no more."""
    _takers.remove(taker)
    if not _takers and sys.unraisablehook is _hook:
        sys.unraisablehook = _before


def quiet_bodies() -> None:
    """A run that was cut leaves bodies behind, which Python closes: it need not complain of those
    that refuse. (Where a body is closed in a run, its row fails by name: `batchgen.bodies`.)"""
    if _is_of_a_body not in _takers:
        take(_is_of_a_body)


def _is_of_a_body(error: BaseException) -> bool:
    return "ignored GeneratorExit" in str(error)


def _hook(event: sys.UnraisableHookArgs) -> None:
    error = event.exc_value
    if error is None or not any(taker(error) for taker in list(_takers)):
        _before(event)
