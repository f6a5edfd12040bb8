"""The sequence table: one row per sequence, columns of plain integers; the only truth of a run.

It stores state and names it. It decides nothing and knows no true output length.

Lazy columns. While a row decodes, its `computed` tokens grow by one per decode pass, so the table
keeps `offset = computed - k` instead (k: the decode clock of its rank) and writes `computed`,
`produced` and `pages` back when the row leaves the running set.

Invariant of a decoding row: computed == prompt + produced - 1 (the newest token has no KV yet).
A follow-up (`extend`) grows `prompt`: known tokens are always prompt + produced.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Status(IntEnum):
    """Where a row stands. docs/coroutine-model.md has the table of transitions."""

    INIT = 0  # not placed: still to arrive, or no engine is alive
    WAITING = 1  # in a lane, without pages
    PREFILL = 2  # resident; prompt chunks run
    DECODE = 3  # resident; in the running set
    STALLED = 4  # resident; pauses because pages or their copies are not there yet
    EXTENDING = 5  # resident; has tokens without KV that need pages before they are prefilled
    SLEEPING = 6  # resident or not; its body waits for a timer
    FROZEN = 7  # resident; looks for another home
    DOUBT = 8  # left the running set; the outcome of its last pass is not known yet
    HOST = 9  # its KV is on a host, and nowhere else
    MOVING = 10  # in a copy
    ARRIVED = 11  # copied; joins at the next decision of its owner
    DONE = 12
    FAILED = 13


NO_ENGINE = -1

# name, array code, NumPy type, first value
_COLUMNS: tuple[tuple[str, str, Any, int], ...] = (
    ("prompt", "i", np.int32, 0),  # prompt tokens, follow-ups included
    ("budget", "i", np.int32, 0),  # most tokens the row may produce, over all its stages
    ("group", "i", np.int32, -1),  # rows of one group share a prompt; -1 none
    ("status", "b", np.int8, 0),
    ("engine", "i", np.int32, NO_ENGINE),  # owner; -1 none
    ("rank", "i", np.int32, 0),
    ("computed", "i", np.int32, 0),  # tokens with KV on the owner; lazy while decoding
    ("offset", "q", np.int64, 0),  # computed - k while decoding
    ("produced", "i", np.int32, 0),  # output tokens; lazy while decoding
    ("pages", "i", np.int32, 0),  # HBM pages leased; lazy while decoding without a reservation
    ("reserved", "b", np.int8, 0),  # 1: pages of the worst case are leased, decoding takes no more
    ("host_pages", "i", np.int32, 0),  # pages leased on the host; lazy while streamed
    ("host_valid", "i", np.int32, 0),  # tokens with KV on the host; lazy while streamed
    ("shared", "i", np.int32, 0),  # leading pages that the prefix index owns
    ("lane", "b", np.int8, 0),  # lane of the order part
    ("side", "b", np.int8, 0),  # end of the deck that gave it
    ("stage", "h", np.int16, 0),  # follow-ups that its body has appended
    ("predicted", "i", np.int32, 0),  # predicted output tokens; 0 = no prediction
    ("expected", "i", np.int32, 0),  # the same by the plan of the order part, once admitted
    ("preemptions", "i", np.int32, 0),
    ("recomputed", "q", np.int64, 0),  # tokens computed a second time
    ("adopted", "q", np.int64, 0),  # tokens of shared prefixes that were not computed
    ("suspensions", "i", np.int32, 0),
    ("migrations", "i", np.int32, 0),
)
COLUMNS = tuple(name for name, _, _, _ in _COLUMNS)


def residual_tokens(left: int, produced: int, predicted: int) -> int:
    """Output that is expected of a row still: what is left of its prediction, or as much as it has
    produced once that is passed (mean residual life of a heavy tail), and no more than may be left
    of its budget. predicted 0: nobody predicts."""
    return min(left, predicted - produced if produced < predicted else produced)


class Table:
    """Columns of `num_rows` rows. `table.NAME` is the NumPy column, `table.v_NAME` an `array` over
    the same memory.

    Scalars go through the arrays (several times faster than NumPy scalars), bulk work through
    NumPy.
    """

    prompt: NDArray[np.int32]
    budget: NDArray[np.int32]
    group: NDArray[np.int32]
    status: NDArray[np.int8]
    engine: NDArray[np.int32]
    rank: NDArray[np.int32]
    computed: NDArray[np.int32]
    offset: NDArray[np.int64]
    produced: NDArray[np.int32]
    pages: NDArray[np.int32]
    reserved: NDArray[np.int8]
    host_pages: NDArray[np.int32]
    host_valid: NDArray[np.int32]
    shared: NDArray[np.int32]
    lane: NDArray[np.int8]
    side: NDArray[np.int8]
    stage: NDArray[np.int16]
    predicted: NDArray[np.int32]
    expected: NDArray[np.int32]
    preemptions: NDArray[np.int32]
    recomputed: NDArray[np.int64]
    adopted: NDArray[np.int64]
    suspensions: NDArray[np.int32]
    migrations: NDArray[np.int32]
    v_prompt: array[int]
    v_budget: array[int]
    v_group: array[int]
    v_status: array[int]
    v_engine: array[int]
    v_rank: array[int]
    v_computed: array[int]
    v_offset: array[int]
    v_produced: array[int]
    v_pages: array[int]
    v_reserved: array[int]
    v_host_pages: array[int]
    v_host_valid: array[int]
    v_shared: array[int]
    v_lane: array[int]
    v_side: array[int]
    v_stage: array[int]
    v_predicted: array[int]
    v_expected: array[int]
    v_preemptions: array[int]
    v_recomputed: array[int]
    v_adopted: array[int]
    v_suspensions: array[int]
    v_migrations: array[int]

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
        for name, code, dtype, first in _COLUMNS:
            values = array(code, [first]) * num_rows
            setattr(self, "v_" + name, values)
            column = np.frombuffer(values, dtype=dtype) if num_rows else np.zeros(0, dtype=dtype)
            setattr(self, name, column)
        self.prompt[:] = prompt_tokens
        self.budget[:] = budget_tokens
        if group is not None:
            self.group[:] = group
        if produced_tokens is not None:
            self.produced[:] = produced_tokens
        if num_rows and (int(self.prompt.min()) < 1 or int(self.budget.min()) < 1):
            raise ValueError("every row needs at least 1 prompt token and a budget of at least 1")

    def __len__(self) -> int:
        return self.num_rows

    def known_tokens(self, row: int) -> int:
        """Tokens whose text is known: prompt + produced. The target of a (re)prefill."""
        return self.v_prompt[row] + self.v_produced[row]

    def ended(self, row: int) -> bool:
        return self.v_status[row] >= Status.DONE

    def story(self, row: int) -> str:
        """One line with everything the table knows of a row."""
        cells = ", ".join(
            f"{name}={Status(self.status[row]).name if name == 'status' else column[row]}"
            for name, column in ((name, getattr(self, name)) for name in COLUMNS)
        )
        return f"row {row} ({cells})"
