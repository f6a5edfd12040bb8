"""Whose turn it is at the engine: batches that wait have it for a slice of time each. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class Turns:
    """The batch that has had the engine least is next; of equals the one that came first.

    slice_s: how long a turn lasts while others wait, 0: to the end of the batch. One who comes
    later counts as having had as much as the one who has had least, so that nobody waits for all
    that was before. A turn in which no row ended doubles the next one: rows that cannot be
    continued (log probabilities are not kept) would never end else.
    """

    def __init__(self, slice_s: float) -> None:
        self._slice_s = slice_s
        self._used_s: dict[str, float] = {}
        self._factor: dict[str, int] = {}

    def add(self, name: str) -> None:
        """A batch that is to run; one that is there already stays as it is."""
        if name not in self._used_s:
            self._used_s[name] = min(self._used_s.values(), default=0.0)
            self._factor[name] = 1

    def remove(self, name: str) -> None:
        self._used_s.pop(name, None)
        self._factor.pop(name, None)

    def __len__(self) -> int:
        return len(self._used_s)

    def __contains__(self, name: object) -> bool:
        return name in self._used_s

    def next(self, not_now: Iterable[str] = ()) -> str | None:
        """Who is next, without those of `not_now`."""
        held = set(not_now)
        names = [name for name in self._used_s if name not in held]
        return min(names, key=self._used_s.__getitem__, default=None)

    def length_s(self, name: str) -> float:
        """Of the next turn of a batch, while others wait."""
        return self._slice_s * self._factor[name] if self._slice_s else float("inf")

    def over(self, name: str, seconds: float, *, rows: int) -> None:
        """A turn that did not end the batch took so long, and so many rows ended in it."""
        if name in self._used_s:
            self._used_s[name] += seconds
            self._factor[name] = 1 if rows else min(2 * self._factor[name], 1 << 20)
