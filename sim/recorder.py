"""Records a run as columns: per-row times and one entry per step. It reads, it never decides."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.cost.api import PassLoad
from batchgen.report.record import (
    KIND_DECODE,
    KIND_MIXED,
    KIND_PREFILL,
    STEP_COLUMNS,
    stage_column,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.actions import Switch
    from batchgen.cost.api import CostModel
    from batchgen.sequence import Table
    from batchgen.step import Step

# One packed entry per step; `context` is what the decodes of its first pass read. What only some
# steps have stands in a table of its own, by the number of the step.
_STEP = np.dtype(
    [
        ("engine", "i4"),
        ("passes", "i4"),
        ("running", "i4"),
        ("finished", "i4"),
        ("kv_pages", "i8"),
        ("q0", "i8"),
        ("start_ps", "i8"),
        ("duration_ps", "i8"),
        ("context", "i8"),
    ]
)
_MORE = np.dtype(
    [(name, "i8") for name in ("step", "tokens", "pairs", "reads", "lasts", "skipped", "missed")]
)
_pack_step, _pack_more = struct.Struct("=4i5q").pack, struct.Struct("=7q").pack

RAN_ON, LEFT, LOST, SWITCHED = 0, 1, 2, 3
"""What a stint begins or ends with: the row decodes again; it left; its engine was lost; its engine
took another layout."""

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
        # (time, row, engine, what) of rows that stop before their end, and that go on.
        self.stints: list[tuple[int, int, int, int]] = []
        self._codes: dict[str, int] = {"": 0}
        self._reason = array("b", [0]) * num_rows
        self._num_steps = 0
        self._steps, self._more = bytearray(), bytearray()
        self._num_stages, self._stage_ps = 0, array("q")

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

    def fell_asleep(self, row: int) -> None:
        """A generation of the row may have ended, the row has not: it ends when its body does."""
        self.v_end[row] = -1

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
        first = self.v_first
        for row, _, _, last in step.chunks:
            if last:
                if first[row] < 0:
                    first[row] = end_ps
                else:
                    self.stints.append((end_ps, row, step.engine, RAN_ON))

    def stopped(self, rows: list[int], engine: int, what: int, now: int) -> None:
        """Rows leave a running set before their end."""
        for row in rows:
            if self.v_end[row] < 0:
                self.stints.append((now, row, engine, what))

    def launched(self, step: Step, begin_ps: int, now: int) -> None:
        """A step begins: rows leave, and rows whose KV is there decode again."""
        if step.left:
            self.stopped(step.left, step.engine, LEFT, now)
        for row in step.joined:
            self.stints.append((begin_ps, row, step.engine, RAN_ON))

    def switched(self, action: Switch, now: int) -> None:
        """An engine prepares another layout; its rows wait for it."""
        text = f"{action.layout} for {len(action.rows)} rows"
        self.mark(now, action.engine, "switch", text)
        self.stopped(action.rows, action.engine, SWITCHED, now)

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
        missed: int,
        kv_pages: int,
    ) -> None:
        """A step ran: base is (decoding rows, their summed offsets, decode clock) at its begin,
        missed the KV tokens that rows which ended in it did not read."""
        count, offsets, k = base
        if not step.decode:
            count = offsets = 0
        if step.chunks or (done and step.until == "n"):
            self._steps_more(step, passes, k, done, missed)
        self._num_steps += 1
        self._steps += _pack_step(
            step.engine,
            passes,
            count,
            len(done),
            kv_pages,
            step.q0,
            begin_ps,
            end_ps - begin_ps,
            offsets + count * (k + 1),
        )

    def stages(self, stage_ps: list[int]) -> None:
        """What the passes of the newest step took in each stage of its pipeline."""
        self._num_stages = len(stage_ps)
        self._stage_ps.extend(stage_ps)

    def _steps_more(
        self, step: Step, passes: int, k: int, done: list[tuple[int, int, int]], missed: int
    ) -> None:
        """Prompt pieces, and what rows missed because they had ended in the step."""
        tokens = pairs = reads = lasts = skipped = 0
        for _, start, size, last in step.chunks:
            tokens += size * passes
            middle = start + size * (passes - 1) // 2
            pairs += size * (size + 2 * middle) * passes
            reads += middle * passes
            lasts += last
        if step.until == "n":
            for _, finish, _ in done:
                behind = k + passes - 1 - finish
                if 0 < behind < passes:
                    skipped += behind
        self._more += _pack_more(self._num_steps, tokens, pairs, reads, lasts, skipped, missed)

    def mean_loads(self, ranks: int) -> tuple[dict[str, NDArray[Any]], PassLoad]:
        """Totals of every step, and its mean pass, spread evenly over the ranks."""
        entries = np.frombuffer(bytes(self._steps), dtype=_STEP)
        more = np.frombuffer(bytes(self._more), dtype=_MORE)
        columns: dict[str, NDArray[Any]] = {
            name: entries[name].astype(np.int64) for name in entries.dtype.names or ()
        }
        context, passes = columns.pop("context"), columns["passes"]

        def rare(name: str) -> NDArray[np.int64]:
            column = np.zeros(len(entries), dtype=np.int64)
            column[more["step"]] = more[name]
            return column

        lasts, tokens, running = rare("lasts"), rare("tokens"), columns["running"]
        decodes = running * passes - rare("skipped")
        context = passes * context + running * (passes * (passes - 1) // 2) - rare("missed")
        columns["prompt_tokens"], columns["output_tokens"] = tokens, decodes + lasts
        columns["kind"] = np.where(
            tokens == 0, KIND_DECODE, np.where(running > 0, KIND_MIXED, KIND_PREFILL)
        ).astype(np.int64)
        per_step = np.maximum(passes, 1)

        def per_rank(column: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.broadcast_to(column // (per_step * ranks), (ranks, len(column)))

        load = PassLoad(
            decodes=per_rank(decodes),
            context=per_rank(context),
            chunk_tokens=per_rank(tokens),
            chunk_pairs=per_rank(rare("pairs")),
            chunk_reads=per_rank(rare("reads")),
            samples=per_rank(columns["output_tokens"]),
            checkpoint=per_rank(np.zeros_like(decodes)),
        )
        columns["decodes"], columns["context"] = decodes, context
        return columns, load

    def steps(self, cost: CostModel) -> dict[str, NDArray[Any]]:
        """The step columns of the run record. FLOPs and bytes are those of each step's mean pass,

        spread evenly over the ranks, times its passes (a report quantity, never a decision).
        """
        columns, load = self.mean_loads(cost.num_ranks)
        per_step = np.maximum(columns["passes"], 1)
        if len(per_step):
            columns["flops"] = np.asarray(cost.flops(load), dtype=np.float64) * per_step
            columns["hbm_bytes"] = np.asarray(cost.hbm_bytes(load), dtype=np.float64) * per_step
        else:
            columns["flops"] = columns["hbm_bytes"] = np.zeros(0)
        stages = np.array(self._stage_ps, dtype=np.int64).reshape(-1, max(self._num_stages, 1))
        return {name: columns[name] for name in STEP_COLUMNS} | {
            stage_column(stage): stages[:, stage].copy() for stage in range(self._num_stages)
        }

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
            "adopted_tokens": table.adopted,
            "migrations": table.migrations,
            "suspensions": table.suspensions,
            "status": (table.status != Status.DONE).astype(np.int64),
        }
