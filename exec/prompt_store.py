"""Prompt ids of a job: int32 in large pieces, on disk beyond a size. No Python object per token."""

from __future__ import annotations

import os
import tempfile
from array import array

import numpy as np
import numpy.typing as npt

from batchgen.errors import UserError

PIECE_TOKENS = 1 << 20
MEMORY_BYTES = 256 << 20


class PromptStore:
    """Keeps what is added, in order; `store[n]` is a read-only view [tokens] of the n-th.

    Up to `memory_bytes` lie in memory, the rest in a mapped temporary file without a name.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._pieces: list[npt.NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]
        self._used = 0
        self._piece_of, self._begin, self._size = array("i"), array("q"), array("q")
        self.held_bytes = 0
        self.mapped_bytes = 0

    def extend(self, tokens: npt.NDArray[np.int32], sizes: npt.NDArray[np.int64]) -> None:
        """Keep copies of many: `sizes` [prompts] in tokens, `tokens` one behind the other."""
        ends = np.cumsum(sizes)
        first, begin = 0, 0
        while first < len(sizes):
            room = len(self._pieces[-1]) - self._used
            last = int(np.searchsorted(ends, begin + room, side="right"))
            if last == first:  # not even one: none lies in two pieces
                self._pieces.append(self._new_piece(max(PIECE_TOKENS, int(sizes[first]))))
                self._used = 0
                continue
            end = int(ends[last - 1])
            self._pieces[-1][self._used : self._used + end - begin] = tokens[begin:end]
            begins = ends[first:last] - sizes[first:last] + (self._used - begin)
            self._piece_of.extend([len(self._pieces) - 1] * (last - first))
            self._begin.frombytes(begins.astype(np.int64).tobytes())
            self._size.frombytes(sizes[first:last].astype(np.int64).tobytes())
            self._used += end - begin
            first, begin = last, end

    def __len__(self) -> int:
        return len(self._size)

    def __getitem__(self, number: int) -> npt.NDArray[np.int32]:
        begin = self._begin[number]
        view = self._pieces[self._piece_of[number]][begin : begin + self._size[number]]
        view.flags.writeable = False
        return view

    def sizes(self) -> npt.NDArray[np.int64]:
        """Tokens of each."""
        return np.array(self._size, dtype=np.int64)

    def _new_piece(self, tokens: int) -> npt.NDArray[np.int32]:
        size = tokens * 4
        if self.held_bytes + size <= self._memory_bytes:
            self.held_bytes += size
            return np.empty(tokens, dtype=np.int32)
        self.mapped_bytes += size
        with tempfile.TemporaryFile(prefix="batchgen-prompts-") as file:
            _fill(file.fileno(), size)
            return np.memmap(file, dtype=np.int32, mode="r+", shape=(tokens,))


def _fill(descriptor: int, size: int) -> None:
    """Give a new file its bytes on the disk: if that is full when a mapped page is written, the
    process ends by SIGBUS. Raises UserError."""
    try:
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise UserError(
            f"no room for the prompts in {tempfile.gettempdir()}: {error.strerror}",
            remedy="make room there, or name another folder in TMPDIR",
        ) from None
