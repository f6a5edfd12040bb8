"""A pass as a GPU's kernels read it: one array of int32, made on the host and copied in one go.

Rows of the pass are numbered 0 .. S - 1 in the order of its segments, and `tables` holds the pages
of each; nothing on the device knows slots. Decode kernels get one query per row, chunk kernels the
rest. Rows of padding, where a pass was filled up to a size that a graph was captured for, have
contexts of 0 and write to the arena's spare page.

Shapes: S segments, T tokens, R wanted tokens, n decoding rows, C = S - n chunks, W pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import IntArray, PassRows

Int32 = npt.NDArray[np.int32]
ALIGNED = 4  # elements of 16 bytes
WIDTHS = (
    16  # tables are so many columns wide or a multiple: their stride is a kernel's argument too
)


@dataclass(frozen=True, slots=True)
class PassShape:
    """How many of everything; `max_context` and `max_length` bound the contexts of decodes and the
    lengths of chunks."""

    num_tokens: int
    num_decodes: int
    num_chunks: int
    num_wanted: int
    table_width: int
    max_context: int
    max_length: int

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """First element and size of each part. Every part begins at a multiple of 16 bytes: a
        kernel is compiled anew for pointers that are aligned otherwise."""
        found, at = [], 0
        for size in self.sizes:
            found.append((at, size))
            at += -(-size // ALIGNED) * ALIGNED
        return tuple(found)

    @property
    def elements(self) -> int:
        """Of the whole array."""
        first, size = self.places[-1]
        return first + size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of the parts, in their order in the array."""
        tokens, chunks = self.num_tokens, self.num_chunks
        rows = self.num_decodes + chunks
        return (
            *(tokens,) * 3,  # ids, rows, positions
            self.num_decodes,  # contexts
            *(chunks,) * 3,  # starts, firsts, lengths
            self.num_wanted,
            rows,  # numbers
            chunks,  # those of chunks
            rows * self.table_width,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedPass:
    """The parts as int32 tensors on the device.

    `token_ids` (`exec.gpu.last`), `token_rows` and `positions` [T]; `rows` [S] are 0 .. S - 1;
    `contexts` [n] are the keys that decoding rows see; `starts`, `firsts`, `lengths` [C]; `wanted`
    [R]; `tables` [S, W]. `decode_rows` [n] and `chunk_rows` [C] are the rows of the queries, each a
    part or the front of one: where a kernel's pointers are not of 16 bytes it is compiled anew.
    """

    shape: PassShape
    token_ids: torch.Tensor
    token_rows: torch.Tensor
    positions: torch.Tensor
    contexts: torch.Tensor
    starts: torch.Tensor
    firsts: torch.Tensor
    lengths: torch.Tensor
    wanted: torch.Tensor
    rows: torch.Tensor
    tables: torch.Tensor
    decode_rows: torch.Tensor
    chunk_rows: torch.Tensor

    def of_wanted(self) -> PagedPass:
        """The wanted tokens as decoding rows, [R]: made on the device."""
        shape, wanted = self.shape, self.wanted
        count = shape.num_wanted
        positions = self.positions.index_select(0, wanted)
        none = wanted[:0]
        return PagedPass(
            shape=PassShape(count, count, 0, count, shape.table_width, shape.max_context, 0),
            token_ids=none,
            token_rows=none,
            positions=positions,
            contexts=positions + 1,
            starts=none,
            firsts=none,
            lengths=none,
            wanted=none,
            rows=self.rows,
            tables=self.tables,
            decode_rows=self.token_rows.index_select(0, wanted),
            chunk_rows=none,
        )


def shape_of(arena: KvArena, rows: PassRows) -> PassShape:
    """The shape of a pass without padding."""
    n = rows.num_decodes
    ends, lengths = rows.ends, rows.lengths[n:]
    return PassShape(
        num_tokens=len(rows.token_ids),
        num_decodes=n,
        num_chunks=len(rows.slots) - n,
        num_wanted=len(rows.wanted),
        table_width=-(-int(ends.max()) // (arena.page_tokens * WIDTHS)) * WIDTHS,
        max_context=int(ends.max()),
        max_length=int(lengths.max()) if len(lengths) else 0,
    )


def pack(arena: KvArena, rows: PassRows, token_ids: IntArray, shape: PassShape, into: Int32) -> int:
    """Write a pass of at most `shape` into the front of `into`; returns how many elements it took.

    More decoding rows and wider tables than the pass has are padding; chunks have none.
    """
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
        table,
    ) = (into[first : first + size] for first, size in shape.places)
    n, padded = rows.num_decodes, shape.num_decodes - rows.num_decodes
    real = np.arange(len(rows.slots))
    real[n:] += padded
    if padded:  # only passes of decodes are filled up, so that their tokens come first
        others = np.arange(n, shape.num_decodes)
        ids[n:], owners[n:], positions[n:], contexts[n:] = 0, others, 0, 0
        wanted[n:] = others
    count = len(token_ids)
    ids[:count] = token_ids
    if len(rows.slots) == n:
        owners[:n], positions[:n], wanted[:n] = real, rows.starts, rows.wanted
    else:
        owners[:] = np.repeat(real, rows.lengths)
        within = np.arange(count) - np.repeat(rows.firsts, rows.lengths)
        positions[:] = np.repeat(rows.starts, rows.lengths) + within
        wanted[:] = rows.wanted
        starts[:], firsts[:], lengths[:] = rows.starts[n:], rows.firsts[n:], rows.lengths[n:]
    contexts[:n] = rows.ends[:n]
    numbers[:] = np.arange(len(numbers))
    of_chunks[:] = numbers[shape.num_decodes :]
    pages = arena.tables.pages
    width = min(shape.table_width, pages.shape[1])
    tables = table.reshape(len(numbers), -1)
    tables[real, :width] = pages[rows.slots, :width]
    if padded:
        tables[n:, 0] = arena.spare
    return shape.elements


def unpack(packed: torch.Tensor, shape: PassShape) -> PagedPass:
    """The parts of a packed pass on the device, as views of it."""
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
        table,
    ) = (packed[first : first + size] for first, size in shape.places)
    return PagedPass(
        shape=shape,
        token_ids=ids,
        token_rows=owners,
        positions=positions,
        contexts=contexts,
        starts=starts,
        firsts=firsts,
        lengths=lengths,
        wanted=wanted,
        rows=numbers,
        tables=table.view(shape.num_decodes + shape.num_chunks, shape.table_width),
        decode_rows=numbers[: shape.num_decodes],
        chunk_rows=of_chunks,
    )
