"""What a run of the executor leaves: columns of steps and passes, times of rows. It decides
nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from batchgen.report import record
from batchgen.step import Chunk, Step

STEP_COLUMNS = tuple(name for name in record.STEP_COLUMNS if name not in record.FLOAT_COLUMNS)
PASS_COLUMNS = (
    "decodes",
    "context",
    "chunk_tokens",
    "chunk_pairs",
    "chunk_reads",
    "samples",
    "duration_ps",
    "gap_ps",
)


class DriverRecord:
    """`steps` and `passes` by column; the gap of a pass is the time since the one before it
    (decisions, copies, waiting; 0 at first). Times of rows are -1 until they are known."""

    def __init__(self, num_rows: int) -> None:
        self.first_token_ps = np.full(num_rows, -1, dtype=np.int64)
        self.end_ps = np.full(num_rows, -1, dtype=np.int64)
        self.steps = {name: array("q") for name in STEP_COLUMNS}
        self.passes = {name: array("q") for name in PASS_COLUMNS}
        self._pass_end_ps = 0

    def first_tokens(self, rows: Sequence[int], end_ps: int) -> None:
        """Rows whose last chunk has run."""
        for row in rows:
            if self.first_token_ps[row] < 0:
                self.first_token_ps[row] = end_ps

    def ended(self, row: int, reason: str, now: int) -> None:
        """The row is over; its last token has set its time, unless it ended otherwise."""
        if self.end_ps[row] < 0 or reason not in ("stop", "length"):
            self.end_ps[row] = now

    def fell_asleep(self, row: int) -> None:
        """A generation of the row may have ended, the row has not: it ends when its body does."""
        self.end_ps[row] = -1

    def one_pass(
        self, contexts: Sequence[int], chunks: Sequence[Chunk], began_ps: int, end_ps: int
    ) -> None:
        """A pass ran. `contexts`: KV tokens that each decoding row read."""
        gap_ps = began_ps - self._pass_end_ps if self._pass_end_ps else 0
        self._pass_end_ps = end_ps
        values = (
            len(contexts),
            sum(contexts),
            sum(size for _, _, size, _ in chunks),
            sum((start + size) ** 2 - start**2 for _, start, size, _ in chunks),
            sum(start for _, start, _, _ in chunks),
            len(contexts) + sum(last for _, _, _, last in chunks),
            end_ps - began_ps,
            max(gap_ps, 0),
        )
        for name, value in zip(PASS_COLUMNS, values, strict=True):
            self.passes[name].append(value)

    def one_step(
        self,
        step: Step,
        passes: int,
        began_ps: int,
        end_ps: int,
        running: int,
        decoded: int,
        num_finished: int,
        kv_pages: int,
    ) -> None:
        """A step was reported; `running` rows decoded in its first pass, and `decoded` in all of
        them together."""
        tokens = sum(size for _, _, size, _ in step.chunks) * passes
        lasts = sum(last for _, _, _, last in step.chunks)
        kind = record.KIND_DECODE
        if step.chunks:
            kind = record.KIND_MIXED if decoded else record.KIND_PREFILL
        values = (
            step.engine,
            step.q0,
            passes,
            began_ps,
            end_ps - began_ps,
            kind,
            running,
            tokens,
            decoded + lasts,
            num_finished,
            kv_pages,
        )
        for name, value in zip(STEP_COLUMNS, values, strict=True):
            self.steps[name].append(value)
