"""A closed batch on a number of seats, list-scheduled: what each pass holds. It knows no time.

Rows take seats in their order, each when one is free. In a pass every row whose prompt is complete
decodes a token, and prompts are computed in the order of their seats, in chunks, as far as the
token budget goes. A row has its first token when the last chunk of its prompt has run. Memory is
what the seats say; nobody is preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from batchgen.cost.api import IntArray
from batchgen.errors import UserError

Load = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Loads of passes, int64 [num_passes] each.

    decodes       rows that decode a token
    context       KV tokens that they read, all together
    chunk_tokens  prompt tokens
    chunk_pairs   sum over chunks of (start + length)^2 - start^2
    samples       tokens that come out
    """

    decodes: IntArray
    context: IntArray
    chunk_tokens: IntArray
    chunk_pairs: IntArray
    samples: IntArray

    @classmethod
    def of(cls, loads: Iterable[Load]) -> Passes:
        """From one tuple a pass, in the order of the fields."""
        table = np.array(list(loads), dtype=np.int64).reshape(-1, len(fields(cls)))
        return cls(**{field.name: table[:, at] for at, field in enumerate(fields(cls))})

    def __len__(self) -> int:
        return len(self.decodes)


def list_schedule(
    prompts: Sequence[int], outputs: Sequence[int], *, seats: int, token_budget: int = 0
) -> Passes:
    """The passes of a batch. `prompts`, `outputs`: tokens of each row, at least 1;
    `token_budget` 0: no limit, every prompt is one chunk."""
    if seats < 1:
        raise UserError(f"{seats} seats take no row", remedy="give at least 1")
    if token_budget and token_budget <= seats:
        raise UserError(
            f"a token budget of {token_budget} leaves no room for prompts beside {seats} rows",
            remedy="give more than there are seats, or 0 for no limit",
        )
    return Passes.of(_walk(prompts, outputs, seats, token_budget))


def _walk(
    prompts: Sequence[int], outputs: Sequence[int], seats: int, token_budget: int
) -> Iterator[Load]:
    waiting = 0  # the next row that has no seat
    filling: deque[int] = deque()  # rows with a seat and without a whole prompt
    start = 0  # prompt tokens of the first of them that are computed
    ends: dict[int, list[int]] = {}  # rows by the pass that gives them their last token
    decodes = context = now = 0
    free = seats
    while waiting < len(prompts) or filling or decodes:
        taken = min(free, len(prompts) - waiting)
        filling.extend(range(waiting, waiting + taken))
        waiting, free = waiting + taken, free - taken
        room = token_budget - decodes if token_budget else None
        tokens = pairs = 0
        joined: list[int] = []
        while filling and room != 0:
            row = filling[0]
            size = prompts[row] - start
            if room is not None:
                size = min(size, room)
                room -= size
            tokens += size
            pairs += size * (size + 2 * start)
            start += size
            if start == prompts[row]:
                joined.append(filling.popleft())
                start = 0
        yield decodes, context, tokens, pairs, decodes + len(joined)
        # What decoded reads a token more in the next pass; what ended reads no more.
        context += decodes
        for row in ends.pop(now, ()):
            decodes -= 1
            context -= prompts[row] + outputs[row]
            free += 1
        for row in joined:
            if outputs[row] == 1:
                free += 1
                continue
            decodes += 1
            context += prompts[row] + 1
            ends.setdefault(now + outputs[row] - 1, []).append(row)
        now += 1
