"""The sequence table: one row per sequence, columns of plain integers; the only truth of a run.

It stores state and checks transitions. It decides nothing and knows no true output length.

Lazy columns. While a row is in a running set its `computed` tokens grow by one per pass, so the
table keeps `offset = computed - q` instead (q: the engine's pass counter) and writes `computed`
back
when the row leaves. `Table.computed_at` answers for both cases.

Invariant of a decoding row: computed == prompt + produced - 1 (the newest token has no KV yet).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.errors import IllegalTransition

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Phase(IntEnum):
    """What the next pass of the row computes."""

    PREFILL = 0
    DECODE = 1


class Status(IntEnum):
    """Where the row stands. Only ACTIVE rows are in a step; INACTIVE rows wait with or without
    KV."""

    INIT = 0
    ACTIVE = 1
    INACTIVE = 2
    DONE = 3
    FAILED = 4


# from -> the statuses it may become
LEGAL: dict[Status, frozenset[Status]] = {
    Status.INIT: frozenset({Status.ACTIVE, Status.INACTIVE, Status.DONE, Status.FAILED}),
    Status.ACTIVE: frozenset({Status.INACTIVE, Status.DONE, Status.FAILED}),
    Status.INACTIVE: frozenset({Status.ACTIVE, Status.INACTIVE, Status.DONE, Status.FAILED}),
    Status.DONE: frozenset(),
    Status.FAILED: frozenset(),
}
_LEGAL_PAIRS = frozenset((int(a), int(b)) for a, targets in LEGAL.items() for b in targets)

NO_ENGINE = -1

_COLUMNS: tuple[tuple[str, type], ...] = (
    ("prompt", np.int32),  # prompt tokens
    ("budget", np.int32),  # most tokens the row may produce
    ("group", np.int32),  # rows of one group share a prompt; -1 none
    ("phase", np.int8),
    ("status", np.int8),
    ("engine", np.int32),  # owner; -1 none
    ("rank", np.int32),
    ("computed", np.int32),  # KV tokens; lazy while running
    ("offset", np.int64),  # computed - q while running
    ("produced", np.int32),  # output tokens; lazy while running
    ("hbm_pages", np.int32),  # pages leased on the owner while not running
    ("reserved", np.int32),  # pages reserved for the worst case; 0 = lazily grown
    ("host_valid", np.int32),  # KV tokens checkpointed on the host
    ("host_pages", np.int32),  # pages leased on the host; lazy while streamed
    ("shared", np.int32),  # leading pages owned by the prefix index
    ("predicted", np.int32),  # predicted output tokens; 0 = no prediction
    ("preemptions", np.int32),
    ("recomputed", np.int64),  # tokens computed a second time
    ("suspensions", np.int32),
    ("migrations", np.int32),
)


class Table:
    """Columns of `num_rows` rows. `table.NAME` is the NumPy column, `table.v_NAME` its memoryview.

    Scalars go through the memoryviews (two to four times faster than NumPy scalars), bulk work
    through the arrays; both see the same memory.
    """

    prompt: NDArray[np.int32]
    budget: NDArray[np.int32]
    group: NDArray[np.int32]
    phase: NDArray[np.int8]
    status: NDArray[np.int8]
    engine: NDArray[np.int32]
    rank: NDArray[np.int32]
    computed: NDArray[np.int32]
    offset: NDArray[np.int64]
    produced: NDArray[np.int32]
    hbm_pages: NDArray[np.int32]
    reserved: NDArray[np.int32]
    host_valid: NDArray[np.int32]
    host_pages: NDArray[np.int32]
    shared: NDArray[np.int32]
    predicted: NDArray[np.int32]
    preemptions: NDArray[np.int32]
    recomputed: NDArray[np.int64]
    suspensions: NDArray[np.int32]
    migrations: NDArray[np.int32]
    v_prompt: memoryview[int]
    v_budget: memoryview[int]
    v_group: memoryview[int]
    v_phase: memoryview[int]
    v_status: memoryview[int]
    v_engine: memoryview[int]
    v_rank: memoryview[int]
    v_computed: memoryview[int]
    v_offset: memoryview[int]
    v_produced: memoryview[int]
    v_hbm_pages: memoryview[int]
    v_reserved: memoryview[int]
    v_host_valid: memoryview[int]
    v_host_pages: memoryview[int]
    v_shared: memoryview[int]
    v_predicted: memoryview[int]
    v_preemptions: memoryview[int]
    v_recomputed: memoryview[int]
    v_suspensions: memoryview[int]
    v_migrations: memoryview[int]

    def __init__(
        self,
        prompt_tokens: Sequence[int] | NDArray[np.int32],
        budget_tokens: Sequence[int] | NDArray[np.int32],
        *,
        group: Sequence[int] | NDArray[np.int32] | None = None,
        produced_tokens: Sequence[int] | NDArray[np.int32] | None = None,
    ) -> None:
        """Make a table of rows that have arrived nowhere yet.

        `produced_tokens` lets a row resume with output it already has. Raises ValueError when a
        prompt or budget is below one token or the lengths differ.
        """
        num_rows = len(prompt_tokens)
        if len(budget_tokens) != num_rows:
            raise ValueError(f"{num_rows} prompts but {len(budget_tokens)} budgets")
        self.num_rows = num_rows
        for name, dtype in _COLUMNS:
            column: NDArray[Any] = np.zeros(num_rows, dtype=dtype)
            setattr(self, name, column)
            setattr(self, "v_" + name, memoryview(column))  # type: ignore[arg-type]
        self.prompt[:] = prompt_tokens
        self.budget[:] = budget_tokens
        self.group[:] = -1 if group is None else group
        if produced_tokens is not None:
            self.produced[:] = produced_tokens
        if num_rows and (int(self.prompt.min()) < 1 or int(self.budget.min()) < 1):
            raise ValueError("every row needs at least 1 prompt token and a budget of at least 1")
        self.engine[:] = NO_ENGINE

    def __len__(self) -> int:
        return self.num_rows

    def move(self, row: int, status: Status) -> None:
        """Change a row's status; raises IllegalTransition with the row's story."""
        if (self.v_status[row], status) not in _LEGAL_PAIRS:
            old = Status(self.v_status[row]).name
            raise IllegalTransition(f"{self.story(row)}: {old} may not become {status.name}")
        self.v_status[row] = status

    def known_tokens(self, row: int) -> int:
        """Tokens whose text is known: prompt + produced. The target of a (re)prefill."""
        return self.v_prompt[row] + self.v_produced[row]

    def story(self, row: int) -> str:
        """One line with everything the table knows of a row."""
        cells = ", ".join(f"{name}={getattr(self, name)[row]}" for name, _ in _COLUMNS)
        return f"row {row} ({cells})"
