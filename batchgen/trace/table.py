"""The trace in memory: columns of lengths, prefixes, groups and arrivals. Reads and writes no file.

Importers, generators and the JSONL reader all end in `Trace`; the simulator and the statistics
start from it. A trace says what the load is, never what a scheduler may know about it:
`output_tokens` is the true length that only a backend may read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchgen.trace.stages import Stages, StagesBuilder, spans

MAX_TOKENS = 2**31 - 1
MAX_ARRIVAL_PS = 2**63 - 1
PS_DECIMALS = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One load. All per-row arrays have the same length n; rows keep the order of their source.

    `arrival_ps` counts from the trace's start, is never negative, need not be sorted, and is all
    zero when the source has no times. `prefix_blocks[prefix_offsets[i]:prefix_offsets[i + 1]]` are
    row i's prompt blocks of `prefix_block_tokens` tokens each, first block first. An id stands for
    the tokens of its block and of all blocks before it, so two prompts share exactly their common
    leading ids; the last block of a row may be only partly filled. `stages`: what rows do after
    their output; None when they end with it. Raises ValueError naming the column when lengths or
    ranges are wrong.
    """

    name: str
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    max_output_tokens: NDArray[np.int32]
    arrival_ps: NDArray[np.int64]
    group: NDArray[np.int32]
    prefix_offsets: NDArray[np.int64]
    prefix_blocks: NDArray[np.int64]
    prefix_block_tokens: int = 0
    ids: tuple[str, ...] | None = None
    stages: Stages | None = None
    expert_skew: float = 0.0
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.prompt_tokens.size
        lowest: dict[str, tuple[NDArray[Any], int]] = {
            "prompt_tokens": (self.prompt_tokens, 1),
            "output_tokens": (self.output_tokens, 1),
            "max_output_tokens": (self.max_output_tokens, 0),
            "arrival_ps": (self.arrival_ps, 0),
            "group": (self.group, -1),
        }
        for column, (values, low) in lowest.items():
            if values.shape != (n,):
                raise ValueError(f"{column}: shape {values.shape}, wanted ({n},)")
            if n and values.min() < low:
                raise ValueError(f"{column}: smallest value {values.min()}, allowed from {low}")
        offsets = self.prefix_offsets
        if offsets.shape != (n + 1,) or offsets[0] != 0 or offsets[-1] != self.prefix_blocks.size:
            raise ValueError("prefix_offsets: wanted n + 1 entries from 0 to len(prefix_blocks)")
        blocks = np.diff(offsets)
        if n and blocks.min() < 0:
            raise ValueError("prefix_offsets: must not fall")
        if self.prefix_blocks.size:
            if self.prefix_block_tokens < 1:
                raise ValueError("prefix_block_tokens: must be at least 1 when rows have prefixes")
            if bool(np.any((blocks - 1) * self.prefix_block_tokens >= self.prompt_tokens)):
                raise ValueError("prefix_blocks: a row has more blocks than its prompt can fill")
        if self.ids is not None and len(self.ids) != n:
            raise ValueError(f"ids: {len(self.ids)} entries, wanted {n}")
        if self.stages is not None and self.stages.offsets.shape != (n + 1,):
            raise ValueError(f"stages: {self.stages.offsets.size - 1} rows, wanted {n}")
        if not (0.0 <= self.expert_skew < float("inf")):
            raise ValueError(f"expert_skew: {self.expert_skew}, wanted a finite number from 0")

    def __len__(self) -> int:
        return int(self.prompt_tokens.size)

    @property
    def longest_output(self) -> int:
        """The largest output of any row or stage: the budget of rows that have none."""
        longest = int(self.output_tokens.max(initial=0))
        if self.stages is not None:
            longest = max(longest, int(self.stages.output_tokens.max(initial=0)))
        return longest

    def take(self, rows: NDArray[np.int64]) -> Trace:
        """The rows with these indices, in this order; all other facts unchanged."""
        where, offsets = spans(self.prefix_offsets, rows)
        return replace(
            self,
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            max_output_tokens=self.max_output_tokens[rows],
            arrival_ps=self.arrival_ps[rows],
            group=self.group[rows],
            prefix_offsets=offsets,
            prefix_blocks=self.prefix_blocks[where],
            ids=None if self.ids is None else tuple(self.ids[i] for i in rows.tolist()),
            stages=None if self.stages is None else self.stages.take(rows),
        )

    def head(self, n: int) -> Trace:
        """The first n rows (all of them if there are fewer)."""
        return self.take(np.arange(max(0, min(n, len(self))), dtype=np.int64))


def make_trace(
    *,
    name: str,
    prompt_tokens: Iterable[int] | NDArray[Any],
    output_tokens: Iterable[int] | NDArray[Any],
    max_output_tokens: NDArray[Any] | None = None,
    arrival_ps: NDArray[Any] | None = None,
    group: NDArray[Any] | None = None,
    prefix_offsets: NDArray[Any] | None = None,
    prefix_blocks: NDArray[Any] | None = None,
    prefix_block_tokens: int = 0,
    ids: tuple[str, ...] | None = None,
    stages: Stages | None = None,
    expert_skew: float = 0.0,
    meta: dict[str, Any] | None = None,
) -> Trace:
    """A Trace from the columns at hand; absent ones get their neutral value."""
    prompts = np.asarray(prompt_tokens, dtype=np.int32)
    n = prompts.size

    def column(values: NDArray[Any] | None, dtype: Any, absent: int) -> NDArray[Any]:
        if values is None:
            return np.full(n, absent, dtype=dtype)
        return np.asarray(values, dtype=dtype)

    empty = np.zeros(0, dtype=np.int64)
    return Trace(
        name=name,
        prompt_tokens=prompts,
        output_tokens=np.asarray(output_tokens, dtype=np.int32),
        max_output_tokens=column(max_output_tokens, np.int32, 0),
        arrival_ps=column(arrival_ps, np.int64, 0),
        group=column(group, np.int32, -1),
        prefix_offsets=(
            np.zeros(n + 1, dtype=np.int64)
            if prefix_offsets is None
            else np.asarray(prefix_offsets, dtype=np.int64)
        ),
        prefix_blocks=empty if prefix_blocks is None else np.asarray(prefix_blocks, dtype=np.int64),
        prefix_block_tokens=prefix_block_tokens,
        ids=ids,
        stages=stages,
        expert_skew=expert_skew,
        meta=dict(meta or {}),
    )


class TraceBuilder:
    """Collects rows one by one in typed arrays: 32 bytes a row, 8 a prefix block, and the id."""

    def __init__(self) -> None:
        self.prompts, self.outputs = array("i"), array("i")
        self.budgets, self.groups = array("i"), array("i")
        self.arrivals = array("q")
        self.offsets, self.blocks = array("q", [0]), array("q")
        self.ids: list[str | None] = []
        self.has_ids = False
        self.stages = StagesBuilder()

    def __len__(self) -> int:
        return len(self.prompts)

    def add(
        self,
        prompt: int,
        output: int,
        arrival_ps: int = 0,
        blocks: Iterable[int] = (),
        row_id: str | None = None,
        budget: int = 0,
        group: int = -1,
    ) -> None:
        """Append one row whose values the caller has checked."""
        # Blocks first: they are the only values that can overflow here, and a half-added row
        # would shift every later one.
        before = len(self.blocks)
        try:
            self.blocks.extend(blocks)
        except OverflowError:
            del self.blocks[before:]
            raise
        self.offsets.append(len(self.blocks))
        self.prompts.append(prompt)
        self.outputs.append(output)
        self.budgets.append(budget)
        self.groups.append(group)
        self.arrivals.append(arrival_ps)
        self.ids.append(row_id)
        self.has_ids = self.has_ids or row_id is not None

    def start_at_zero(self) -> int:
        """Move the earliest arrival to zero and return the span in ps.

        A span beyond 64 bits is returned and nothing is moved; the caller reports it.
        """
        if not self.arrivals:
            return 0
        earliest = min(self.arrivals)
        span = max(self.arrivals) - earliest
        if earliest and span <= MAX_ARRIVAL_PS:
            self.arrivals = array("q", (arrival - earliest for arrival in self.arrivals))
        return span

    def build(
        self,
        *,
        name: str,
        prefix_block_tokens: int = 0,
        expert_skew: float = 0.0,
        meta: dict[str, Any] | None = None,
    ) -> Trace:
        """The trace. Rows without an id in a trace with ids get their row number as id."""

        def column(values: array[int], dtype: Any) -> NDArray[Any]:
            return np.frombuffer(values, dtype=dtype) if len(values) else np.zeros(0, dtype)

        ids = None
        if self.has_ids:
            ids = tuple(str(i) if x is None else x for i, x in enumerate(self.ids))
        return make_trace(
            name=name,
            prompt_tokens=column(self.prompts, np.int32),
            output_tokens=column(self.outputs, np.int32),
            max_output_tokens=column(self.budgets, np.int32),
            arrival_ps=column(self.arrivals, np.int64),
            group=column(self.groups, np.int32),
            prefix_offsets=column(self.offsets, np.int64),
            prefix_blocks=column(self.blocks, np.int64),
            prefix_block_tokens=prefix_block_tokens if len(self.blocks) else 0,
            ids=ids,
            stages=self.stages.build(len(self)),
            expert_skew=expert_skew,
            meta=meta,
        )


def output_budgets(trace: Trace, given: int | None) -> NDArray[np.int32]:
    """Output budgets a scheduler may see, of every stage of a row: the row's own, else `given`,
    else the trace's maximum."""
    default = given if given is not None else trace.longest_output
    budgets = np.where(trace.max_output_tokens > 0, trace.max_output_tokens, default)
    return budgets.astype(np.int32)
