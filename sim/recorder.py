"""Records a run as columns: per-row times and one entry per step. It reads, it never decides."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.cost.api import PassLoad
from batchgen.report.record import (
    FLOAT_COLUMNS,
    KIND_DECODE,
    KIND_MIXED,
    KIND_PREFILL,
    STEP_COLUMNS,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.cost.api import CostModel
    from batchgen.sequence import Table
    from batchgen.step import Step

_COLUMNS = (
    *(name for name in STEP_COLUMNS if name not in FLOAT_COLUMNS),
    # what the cost model needs to count FLOPs and bytes of the step's mean pass afterwards
    "context",
    "pairs",
    "reads",
    "last_chunks",
)

MOST_REASONS = 20
"""Rows whose reason is kept; thousands of them say the same."""


class Recorder:
    """One append per step, of plain integers; FLOPs and bytes are counted once, at the end."""

    def __init__(self, num_rows: int) -> None:
        self.first_token_ps = np.full(num_rows, -1, dtype=np.int64)
        self.v_end = array("q", [-1]) * num_rows
        self.v_first = memoryview(self.first_token_ps)  # type: ignore[arg-type]
        self.why: dict[int, str] = {}  # of failed rows
        self.marks: list[dict[str, Any]] = []
        self._codes: dict[str, int] = {"": 0}
        self._reason = array("b", [0]) * num_rows
        self._steps = array("q")

    @property
    def end_ps(self) -> NDArray[np.int64]:
        """End of every row in ps; -1 for one that did not end."""
        return np.frombuffer(self.v_end, dtype=np.int64) if self.v_end else np.zeros(0, np.int64)

    def mark(self, t_ps: int, engine: int, kind: str, text: str) -> None:
        """Note something that a person wants to see on a time axis."""
        self.marks.append({"t_ps": t_ps, "engine": engine, "kind": kind, "text": text})

    # -- rows -------------------------------------------------------------------------------------

    def ended(self, row: int, reason: str, now: int) -> None:
        """The row is over; its last token has set its time, unless its body ended it."""
        code = self._codes.get(reason)
        if code is None:
            code = self._codes[reason] = len(self._codes)
        self._reason[row] = code
        if self.v_end[row] < 0 or reason not in ("stop", "length"):
            self.v_end[row] = now

    def failed(self, row: int, code: str, why: str, now: int) -> None:
        """The row ended without success."""
        self.ended(row, code, now)
        self.v_end[row] = now
        if why:
            self.why[row] = why

    def reason(self, row: int) -> str:
        """Why a row ended, or "" while it has not."""
        names = list(self._codes)
        return names[self._reason[row]]

    @property
    def reasons(self) -> dict[int, str]:
        """Reasons of the rows that ended."""
        names = list(self._codes)
        return {row: names[code] for row, code in enumerate(self._reason) if code}

    def row_reasons(self) -> list[str]:
        """Reason per row, "" for one that has not ended."""
        names = list(self._codes)
        return [names[code] for code in self._reason]

    def first_tokens(self, step: Step, end_ps: int) -> None:
        """Rows whose last chunk the step held have their first token when its pass ends."""
        if step.chunks:
            first = self.v_first
            for row, _, _, last in step.chunks:
                if last and first[row] < 0:
                    first[row] = end_ps

    def no_first_tokens(self, step: Step, end_ps: int) -> None:
        """The pass that would have ended then was lost."""
        for row, _, _, _ in step.chunks:
            if self.v_first[row] == end_ps:
                self.v_first[row] = -1

    def why_failed(self) -> dict[str, str]:
        """Code and reason of the first rows that failed for one."""
        rows = sorted(self.why)[:MOST_REASONS]
        return {str(row): f"{self.reason(row)}: {self.why[row]}" for row in rows}

    # -- steps ------------------------------------------------------------------------------------

    def step(
        self,
        step: Step,
        passes: int,
        begin_ps: int,
        end_ps: int,
        base: tuple[int, int, int],
        done: list[tuple[int, int, int]],
        kv_pages: int,
    ) -> None:
        """A step ran: base is (decoding rows, their summed offsets, decode clock) at its begin."""
        count, offsets, k = base if step.decode else (0, 0, base[2])
        tokens = pairs = reads = lasts = 0
        for _, start, size, last in step.chunks:
            tokens += size * passes
            middle = start + size * (passes - 1) // 2
            pairs += ((middle + size) ** 2 - middle * middle) * passes
            reads += middle * passes
            lasts += last
        output = count * passes + lasts
        context = passes * (offsets + count * (k + 1)) + count * (passes * (passes - 1) // 2)
        if step.until == "n":
            for _, finish, _ in done:
                missed = k + passes - 1 - finish
                if 0 < missed < passes:  # about as much as a mean row of the step reads
                    output -= missed
                    context -= missed * (context // max(count * passes, 1))
        kind = KIND_DECODE if not step.chunks else KIND_MIXED if count else KIND_PREFILL
        self._steps.extend(
            (
                step.engine,
                step.q0,
                passes,
                begin_ps,
                end_ps - begin_ps,
                kind,
                count,
                tokens,
                output,
                len(done),
                kv_pages,
                context,
                pairs,
                reads,
                lasts,
            )
        )

    def steps(self, cost: CostModel) -> dict[str, NDArray[Any]]:
        """The step columns of the run record. FLOPs and bytes are those of each step's mean pass,

        spread evenly over the ranks, times its passes (a report quantity, never a decision).
        """
        width = len(_COLUMNS)
        values = (
            np.frombuffer(self._steps, dtype=np.int64).reshape(-1, width)
            if self._steps
            else np.zeros((0, width), np.int64)
        )
        columns: dict[str, NDArray[Any]] = {
            name: np.ascontiguousarray(values[:, index]) for index, name in enumerate(_COLUMNS)
        }
        passes = np.maximum(columns["passes"], 1)
        ranks = cost.num_ranks
        decodes = columns["output_tokens"] - columns["last_chunks"]

        def per_rank(column: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.broadcast_to(column // (passes * ranks), (ranks, len(column)))

        load = PassLoad(
            decodes=per_rank(decodes),
            context=per_rank(columns["context"]),
            chunk_tokens=per_rank(columns["prompt_tokens"]),
            chunk_pairs=per_rank(columns["pairs"]),
            chunk_reads=per_rank(columns["reads"]),
            samples=per_rank(columns["output_tokens"]),
            checkpoint=per_rank(np.zeros_like(decodes)),
        )
        if len(passes):
            columns["flops"] = np.asarray(cost.flops(load), dtype=np.float64) * passes
            columns["hbm_bytes"] = np.asarray(cost.hbm_bytes(load), dtype=np.float64) * passes
        else:
            columns["flops"] = columns["hbm_bytes"] = np.zeros(0)
        for name in ("context", "pairs", "reads", "last_chunks"):
            del columns[name]
        return columns

    def rows(self, table: Table, arrival_ps: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The row columns of the run record."""
        from batchgen.sequence import Status

        return {
            "row": np.arange(len(table), dtype=np.int64),
            "prompt_tokens": table.prompt,
            "output_tokens": table.produced,
            "engine": table.engine,
            "rank": np.where(table.engine >= 0, table.rank, -1),
            "arrival_ps": arrival_ps,
            "first_token_ps": self.first_token_ps,
            "end_ps": self.end_ps,
            "preemptions": table.preemptions,
            "recomputed_tokens": table.recomputed,
            "migrations": table.migrations,
            "suspensions": table.suspensions,
            "status": (table.status != Status.DONE).astype(np.int64),
        }
