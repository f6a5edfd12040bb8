"""The step: a constant composition for up to n passes, and `Composition`, which says what each pass
holds.

A step names only what changes. Two clocks count: q numbers the passes of an engine, and k, the
decode clock of a rank, those of them in which its rows decode (a prefill phase and a pause leave it
alone).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

Chunk = tuple[int, int, int, bool]
"""(row, start, length, last): pass j of the step prefills [start + j*length, start +
(j+1)*length)."""


class Step(msgspec.Struct, frozen=True, tag="step", gc=False, omit_defaults=True):
    """Run up to `n` passes of one composition on an engine. Identity: (engine, q0).

    until: "first" ends the step with the first finish, "n" lets finished rows leave the following
    passes, "all" keeps them as dead rows until a step names them in `left` (a static batch, whose
    prompts are padded to the longest of the pass). With lag 1 a finished row stays for one more
    pass, its token dropped, and "first" ends one pass after the finish; a finish that was not
    reported when the step was launched counts.
    decode False: passes of prompts alone; the running set pauses and k stands still. paused: that
    of these ranks, which have prompts, while the rows of the others decode.
    A chunk with `last` implies n == 1; its row decodes from the next pass on, unless it is handed
    over (`hand`: the engine only prefills). `checkpoint` is "host" when KV streams to the host.
    The log leaves out what is as it is by default.
    """

    engine: int
    q0: int
    epoch: int = 0
    n: int = 1
    until: str = "first"
    decode: bool = True
    joined: list[int] = []
    left: list[int] = []
    chunks: list[Chunk] = []
    checkpoint: str = ""
    hand: bool = False
    paused: list[int] = []


class Pass(NamedTuple):
    """What one pass computes: rows decoding one token each, and prompt pieces."""

    number: int
    decodes: list[int]
    chunks: list[Chunk]


class Composition:
    """The running set of one engine as its backend sees it, and the passes of its steps.

    `launch(step)`, then `next_pass()` and `report(finished rows)` by turns, `report` lagging behind
    by `lag` passes; `next_pass` returns None when the step is over. With lag 0 every pass is
    reported before the next is asked for; with lag 1 pass j is asked for when pass j - 2 is
    reported, across steps too. rank_of: the rank of every row, where steps pause some.
    """

    def __init__(self, lag: int, rank_of: Sequence[int] = ()) -> None:
        self.lag, self._rank_of = lag, rank_of
        self.rows: dict[int, None] = {}
        self._step: Step | None = None
        self._made = 0
        self._limit = 0
        self._dead: dict[int, None] = {}
        self._fresh_finish = False

    def launch(self, step: Step) -> None:
        """The step begins; its changes of the running set happen now."""
        for row in step.left:
            self.rows.pop(row, None)
            self._dead.pop(row, None)
        for row in step.joined:
            self.rows[row] = None
        self._step, self._made, self._limit, self._fresh_finish = step, 0, step.n, False

    def forget(self, rows: Collection[int]) -> None:
        """Rows leave without a step."""
        for row in rows:
            self.rows.pop(row, None)
            self._dead.pop(row, None)

    def clear(self) -> None:
        """The device is lost, or its layout changes."""
        self.__init__(self.lag, self._rank_of)  # type: ignore[misc]

    def cut(self, *, begun: bool = True) -> None:
        """End the step early. With lag 1 the report of what runs now is the next one, so one more
        pass begins behind it. begun False: what happens at this instant is still being told, and
        the pass asked for begins after it; a step of that pass alone is reported when it begins."""
        self._limit = min(self._limit, max(self._made + (self.lag if begun else 0), 1))

    @property
    def passes(self) -> int:
        """Passes of the step that were asked for."""
        return self._made

    @property
    def decodes(self) -> list[int]:
        """Rows that decode in the next pass of a decoding step."""
        return list(self.rows)

    def over(self) -> bool:
        """Whether the step has no further pass, as far as reported outcomes tell."""
        step = self._step
        return step is None or self._made >= self._limit or self._finished(step)

    def _finished(self, step: Step) -> bool:
        if self._made == 0:
            return False
        if step.until == "first":
            return self._fresh_finish
        return len(self.rows) == len(self._dead) and not step.chunks

    def next_pass(self) -> Pass | None:
        """The next pass of the step, or None when it is over."""
        step = self._step
        if step is None or self.over():
            return None
        j = self._made
        chunks = [(row, start + j * size, size, last) for row, start, size, last in step.chunks]
        decodes = list(self.rows) if step.decode else []
        if step.paused:
            decodes = [row for row in decodes if self._rank_of[row] not in step.paused]
        one = Pass(j, decodes, chunks)
        self._made += 1
        for row, _, _, last in chunks:
            if last and not step.hand:
                self.rows[row] = None
        return one

    def report(self, finished: Collection[int]) -> None:
        """Outcomes of the oldest pass that was not reported. With lag 1 the next pass has been
        asked for, so that finished rows are in it as ghosts, and in none after it."""
        step = self._step
        if not finished:
            return
        self._fresh_finish = True
        for row in finished:
            if row not in self.rows:
                continue
            if step is not None and step.until == "all":
                self._dead[row] = None
            else:
                del self.rows[row]

    def why(self) -> str:
        """Why the step is over: "n", "finish" or "cut", the first that holds."""
        step = self._step
        assert step is not None
        if self._made >= step.n:
            return "n"
        return "finish" if self._finished(step) else "cut"
