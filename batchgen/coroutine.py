"""Sequence coroutines: the body that every sequence runs, and the bookkeeper that resumes bodies.

A body is a generator function of (table, row). It keeps nothing between suspensions that is not in
the row, so it may be dropped at any suspension and made anew. It yields the stage that it wants
next and is resumed with what happened, at stage changes only, never per pass. A body that returns
before FINISHED ends its sequence early, with reason "body".

`advance` is the default body, vectorised: what many rows want after the same outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from batchgen.sequence import Phase, Status, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Stage(IntEnum):
    """What a sequence asks to do next."""

    PREFILL = 0  # combine into a batch that computes its known tokens
    DECODE = 1  # combine into a batch that produces one token per pass
    END = 2  # nothing


class Outcome(IntEnum):
    """Why a sequence is resumed."""

    PROMPT_DONE = 0  # every known token has KV and a new token was sampled
    SUSPENDED = 1  # it yielded; its KV is, or is going, to a lower tier
    RESUMED = 2  # its KV is back
    LOST = 3  # its KV is gone everywhere
    FINISHED = 4  # it ended


Body = Generator[Stage, Outcome, None]
BodyFactory = Callable[[Table, int], Body]


def wanted(table: Table, row: int) -> Stage:
    """The stage that a row's columns call for."""
    if table.v_status[row] >= Status.DONE:
        return Stage.END
    return Stage.PREFILL if table.v_phase[row] == Phase.PREFILL else Stage.DECODE


def default_body(table: Table, row: int) -> Body:
    """Prefill, decode until the end, and start over whenever the KV is lost."""
    while (stage := wanted(table, row)) is not Stage.END:
        outcome = yield stage
        if outcome is Outcome.FINISHED:
            return


_AFTER = {
    Outcome.PROMPT_DONE: Stage.DECODE,
    Outcome.LOST: Stage.PREFILL,
    Outcome.FINISHED: Stage.END,
}


def advance(table: Table, rows: NDArray[np.intp], outcome: Outcome) -> NDArray[np.int8]:
    """The default body for many rows: [n] stages wanted after `outcome`."""
    if outcome in _AFTER:
        return np.full(len(rows), _AFTER[outcome], dtype=np.int8)
    stages = table.phase[rows].astype(np.int8)
    stages[table.status[rows] >= Status.DONE] = Stage.END
    return stages


class Bodies:
    """Makes, resumes and drops the bodies of active rows. With no factory rows use `advance`'s
    rule.

    `ended_early` collects rows whose body returned although they are unfinished; the runtime ends
    them at its next decision.
    """

    __slots__ = ("_factory", "_live", "_table", "ended_early")

    def __init__(self, table: Table, factory: BodyFactory | None = None) -> None:
        self._table = table
        self._factory = factory
        self._live: dict[int, Body] = {}
        self.ended_early: list[int] = []

    def start(self, row: int) -> None:
        """The row became active."""
        if self._factory is not None and row not in self._live:
            self._make(row)

    def _make(self, row: int) -> Body | None:
        assert self._factory is not None
        body = self._factory(self._table, row)
        try:
            next(body)
        except StopIteration:
            self.ended_early.append(row)
            return None
        self._live[row] = body
        return body

    def _send(self, row: int, outcome: Outcome) -> None:
        body = self._live.get(row) or self._make(row)
        if body is None:
            return
        try:
            body.send(outcome)
        except StopIteration:
            self._live.pop(row, None)
            if outcome is not Outcome.FINISHED:
                self.ended_early.append(row)

    def prompt_done(self, row: int) -> None:
        if self._factory is not None:
            self._send(row, Outcome.PROMPT_DONE)

    def suspended(self, row: int) -> None:
        if self._factory is not None:
            self._send(row, Outcome.SUSPENDED)

    def resumed(self, row: int) -> None:
        if self._factory is not None:
            self._send(row, Outcome.RESUMED)

    def lost(self, row: int) -> None:
        if self._factory is not None:
            self._send(row, Outcome.LOST)

    def finished(self, row: int) -> None:
        if self._factory is not None and row in self._live:
            self._send(row, Outcome.FINISHED)
            self._live.pop(row, None)

    def drop(self, row: int) -> None:
        """Forget the generator; the next resume makes it anew from the row."""
        body = self._live.pop(row, None)
        if body is not None:
            body.close()
