"""What a pass computes of each row: the segments of its orders, checked, and their tokens.

An order that cannot be carried out is an IllegalTransition, because the runtime promised that it
cannot happen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchgen.errors import IllegalTransition
from batchgen.exec.prefix import PrefixPages
from batchgen.exec.rows import FAILED, Ints, Rows
from batchgen.step import Chunk


def segments(
    columns: Rows, prefix: PrefixPages, decodes: Sequence[int], chunks: Sequence[Chunk]
) -> tuple[Ints, Ints, Ints]:
    """Slots, first positions and lengths [S] of what a pass computes, checked."""
    slots = columns.slots([*decodes, *(row for row, _, _, _ in chunks)])
    flying, computed, ended = columns.flying[slots], columns.computed[slots], columns.ended[slots]
    known = columns.known(slots) + flying
    n = len(decodes)
    starts, lengths = computed.copy(), np.ones(len(slots), dtype=np.int64)
    # A ghost that failed has no token of its own: the one before again.
    again = ended == FAILED
    starts -= again & (computed > 0)
    ready = (computed[:n] == known[:n] - 1) & (columns.produced(slots[:n]) + flying[:n] > 0)
    if not bool((ready | again[:n]).all()):
        bad = int(np.flatnonzero(~(ready | again[:n]))[0])
        raise IllegalTransition(
            f"row {decodes[bad]} decodes with {computed[bad]} of {known[bad]} tokens computed"
        )
    for number, (row, start, length, last) in enumerate(chunks, start=n):
        if again[number]:
            continue
        end = start + length
        if start != computed[number] or length < 1 or end > known[number]:
            raise IllegalTransition(
                f"row {row}: chunk [{start}, {end}) with {computed[number]} of "
                f"{known[number]} tokens computed"
            )
        if last != (end == known[number]) or ended[number]:
            raise IllegalTransition(f"row {row}: chunk [{start}, {end}) has last={last}")
        starts[number] = prefix.begins(int(slots[number]), start)
        lengths[number] = end - starts[number]
    return slots, starts, lengths


def token_ids(columns: Rows, slots: Ints, starts: Ints, lengths: Ints, num_decodes: int) -> Ints:
    """Flat token ids [T] of the segments; the first `num_decodes` are single last tokens."""
    firsts = columns.last[slots[:num_decodes]]
    again = np.flatnonzero(columns.ended[slots[:num_decodes]] == FAILED)
    for number in again.tolist():
        start = int(starts[number])
        firsts[number] = columns.ids(int(slots[number]), start, start + 1)[0]
    parts = [firsts]
    for slot, start, length in zip(
        *(x[num_decodes:].tolist() for x in (slots, starts, lengths)), strict=True
    ):
        parts.append(columns.ids(slot, start, start + length))
    return np.concatenate(parts)


def halves(
    decodes: tuple[int, ...], chunks: tuple[Chunk, ...]
) -> list[tuple[tuple[int, ...], tuple[Chunk, ...]]]:
    """A pass in two, in order: a row that shares pages with one before it comes after it."""
    if decodes and chunks:
        return [(decodes, ()), ((), chunks)]
    middle = (len(decodes) + len(chunks)) // 2
    return [
        (decodes[:middle], chunks[:middle]),
        (decodes[middle:], chunks[middle:]),
    ]
