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
    from batchgen.runtime.engine import Engine
    from batchgen.sequence import Table
    from batchgen.sim.flight import Flight

_COLUMNS = (
    *(name for name in STEP_COLUMNS if name not in FLOAT_COLUMNS),
    # what the cost model needs to count FLOPs and bytes of the step's mean pass afterwards
    "context",
    "pairs",
    "reads",
    "last_chunks",
)


class Recorder:
    """Appends are a few plain integers per step; FLOPs and bytes are counted once, at the end."""

    def __init__(self, num_rows: int) -> None:
        self.first_token_ps = np.full(num_rows, -1, dtype=np.int64)
        self.end_ps = np.full(num_rows, -1, dtype=np.int64)
        self.v_first = memoryview(self.first_token_ps)  # type: ignore[arg-type]
        self.v_end = memoryview(self.end_ps)  # type: ignore[arg-type]
        self.reasons: dict[int, str] = {}
        self.marks: list[dict[str, Any]] = []
        self._columns = {name: array("q") for name in _COLUMNS}
        self._append = [self._columns[name].append for name in _COLUMNS]

    def mark(self, t_ps: int, engine: int, kind: str, text: str) -> None:
        """Note something that a person wants to see on a time axis."""
        self.marks.append({"t_ps": t_ps, "engine": engine, "kind": kind, "text": text})

    def step(self, flight: Flight, start_ps: int, engine: Engine) -> None:
        """A step ran `flight.passes` passes; rows that ended in it get their times."""
        step, passes = flight.step, flight.passes
        count, offsets = flight.base_sums()
        finishes = flight.finishes
        for (row, _), end in zip(finishes, flight.ends_ps, strict=True):
            self.v_end[row] = start_ps + end
        tokens = pairs = reads = lasts = 0
        if step.chunks:
            first = self.v_first
            for row, start, size, last in step.chunks:
                tokens += size * passes
                middle = start + size * (passes - 1) // 2
                pairs += ((middle + size) ** 2 - middle * middle) * passes
                reads += middle * passes
                if last and passes:
                    lasts += 1
                    if first[row] < 0:
                        first[row] = start_ps + flight.duration_ps
        output = count * passes + lasts
        context = passes * (offsets + count * (step.q0 + 1)) + count * (passes * (passes - 1) // 2)
        end_q = step.q0 + passes - 1
        for row, offset in finishes[flight.chunk_finishes :]:
            missed = passes - 1 - offset
            output -= missed
            if missed:
                context -= (
                    missed * (flight.mirror.offset[row] + end_q + 1) - missed * (missed - 1) // 2
                )
        kind = KIND_DECODE if not step.chunks else KIND_MIXED if count else KIND_PREFILL
        values = (
            step.engine,
            step.q0,
            passes,
            start_ps,
            flight.duration_ps,
            kind,
            count,
            tokens,
            output,
            len(finishes),
            sum(rank.pool.used for rank in engine.ranks),
            context,
            pairs,
            reads,
            lasts,
        )
        for append, value in zip(self._append, values, strict=True):
            append(value)

    def steps(self, cost: CostModel) -> dict[str, NDArray[Any]]:
        """The step columns of the run record. FLOPs and bytes are those of each step's mean pass,

        spread evenly over the ranks, times its passes (a report quantity, never a decision).
        """
        columns: dict[str, NDArray[Any]] = {
            name: np.frombuffer(values, dtype=np.int64) if len(values) else np.zeros(0, np.int64)
            for name, values in self._columns.items()
        }
        passes = np.maximum(columns["passes"], 1)
        ranks = cost.num_ranks
        chunk_tokens = columns["prompt_tokens"]
        decodes = columns["output_tokens"] - columns["last_chunks"]

        def per_rank(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.broadcast_to(values // (passes * ranks), (ranks, len(values)))

        load = PassLoad(
            decodes=per_rank(decodes),
            context=per_rank(columns["context"]),
            chunk_tokens=per_rank(chunk_tokens),
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
