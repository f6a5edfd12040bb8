"""Passes over nothing, so that a GPU's kernels are compiled and its memory known before a job.

A kernel is compiled for tile sizes that depend on how many rows and tokens a pass has. These passes
have the sizes between which tiles change; they read and write the arena's spare page alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from batchgen.exec.attention.paged import WIDTHS, PassShape

LONG_TOKENS = 4096  # of contexts: so many that rows are split


def warming_shapes(
    token_budget: int, seats: int, page_tokens: int, max_context: int
) -> Iterator[PassShape]:
    """Decoding rows alone, with short and long contexts; chunks alone; both together, up to the
    largest pass that a plan allows. The largest come first: they decide how much memory is left."""
    long = min(LONG_TOKENS, max_context)
    seats = min(seats, token_budget)

    def width(tokens: int) -> int:
        return -(-tokens // (page_tokens * WIDTHS)) * WIDTHS

    whole = min(token_budget, max_context)
    yield PassShape(whole, 0, 1, 1, width(max_context), whole, whole)
    rows = min(seats, token_budget - 1)
    if rows:
        tokens = min(token_budget - rows, max_context)
        yield PassShape(tokens + rows, rows, 1, rows + 1, width(max(long, tokens)), long, tokens)
    for chunks in (20, 200):
        if chunks * 2 < whole:
            size = whole // chunks
            yield PassShape(chunks * size, 0, chunks, chunks, width(size), size, size)
    for count in (seats, *(n for n in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if n < seats)):
        for context in (long, min(page_tokens, max_context)):
            yield PassShape(count, count, 0, count, width(context), context, 0)


def fill(shape: PassShape, spare: int) -> torch.Tensor:
    """A packed pass of that shape, all of whose pages are the spare one."""
    packed = np.zeros(shape.elements, dtype=np.int32)
    (
        ids,
        owners,
        positions,
        contexts,
        starts,
        firsts,
        lengths,
        wanted,
        numbers,
        of_chunks,
        tables,
    ) = (packed[first : first + size] for first, size in shape.places)
    n, chunks = shape.num_decodes, shape.num_chunks
    sizes = np.full(chunks, shape.max_length)
    if chunks:
        sizes[-1] = shape.num_tokens - n - shape.max_length * (chunks - 1)
    ids[:] = 1
    owners[:] = np.repeat(np.arange(n + chunks), [*[1] * n, *sizes])
    contexts[:] = shape.max_context
    positions[:n] = shape.max_context - 1
    ends = np.cumsum(sizes)
    firsts[:], lengths[:], starts[:] = n + ends - sizes, sizes, 0
    positions[n:] = np.arange(shape.num_tokens - n) - np.repeat(ends - sizes, sizes)
    wanted[:n] = np.arange(n)
    wanted[n:] = n + ends[: shape.num_wanted - n] - 1
    numbers[:], of_chunks[:] = np.arange(n + chunks), np.arange(n, n + chunks)
    tables[:] = spare
    return torch.from_numpy(packed)
