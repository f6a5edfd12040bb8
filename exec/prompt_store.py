"""Prompt ids of a job: int32 in large pieces, on disk beyond a size. No Python object per token."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import numpy.typing as npt

from batchgen.errors import UserError
from batchgen.job.rows import TokenIds

PIECE_TOKENS = 1 << 20
MEMORY_BYTES = 256 << 20


class PromptStore:
    """Keeps what is added, in order; `add` gives a view that stays good.

    Up to `memory_bytes` lie in memory, the rest in a mapped temporary file without a name.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._piece: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._used = 0
        self.held_bytes = 0
        self.mapped_bytes = 0

    def add(self, ids: TokenIds) -> npt.NDArray[np.int32]:
        """A read-only copy [len(ids)]."""
        if self._used + len(ids) > len(self._piece):
            self._piece, self._used = self._new_piece(max(PIECE_TOKENS, len(ids))), 0
        view = self._piece[self._used : self._used + len(ids)]
        view[:] = ids
        view.flags.writeable = False
        self._used += len(ids)
        return view

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
