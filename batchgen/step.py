"""The step: a constant composition for up to n passes, and `unroll`, which says what each pass
holds.

A step names only what changes. The running set is implied: the old one, minus the rows that
finished, minus `left`, plus `joined`, plus the rows whose last chunk ran in the step before.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from typing import NamedTuple

import msgspec

Chunk = tuple[int, int, int, bool]
"""(row, start, length, last): pass k of the step prefills [start + k*length, start +
(k+1)*length)."""


class Step(msgspec.Struct, frozen=True, tag="step", gc=False):
    """Run up to `n` passes of one composition on an engine. Identity: (engine, q0).

    until: "first" ends the step with the first finish, "n" lets finished rows leave the following
    passes. A chunk with `last` implies n == 1. `checkpoint` is "host" when closed pages stream
    down.
    """

    engine: int
    epoch: int
    q0: int
    n: int
    until: str
    joined: list[int]
    left: list[int]
    chunks: list[Chunk]
    checkpoint: str


class Pass(NamedTuple):
    """What one pass computes: rows decoding one token each, and prompt pieces."""

    number: int
    decodes: list[int]
    chunks: list[Chunk]


def unroll(step: Step, running: Iterable[int]) -> Generator[Pass, Collection[int], None]:
    """Yield the composition of every pass of `step`; send back the rows that finished in it.

    `running` is the running set before the step, in its order. The generator ends when the step
    does: after n passes, after the first finish (until "first"), or when nothing is left to run.
    """
    left = set(step.left)
    decodes = [row for row in running if row not in left]
    decodes.extend(step.joined)
    for k in range(step.n):
        chunks = [(row, start + k * size, size, last) for row, start, size, last in step.chunks]
        if not decodes and not chunks:
            return
        finished = yield Pass(k, decodes, chunks)
        if finished:
            if step.until == "first":
                return
            gone = set(finished)
            decodes = [row for row in decodes if row not in gone]


def ended_by(step: Step, passes: int, *, finished: bool, nothing_left: bool) -> str:
    """Why a step is over after `passes`: "finish", "n" or "cut". One rule for both backends.

    finished: a decoding row ended in the last pass. nothing_left: no row decodes any more.
    """
    if step.until == "first":
        if finished:
            return "finish"
    elif nothing_left and not step.chunks:
        return "finish"
    return "n" if passes == step.n else "cut"
