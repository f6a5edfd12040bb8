"""A decision log on the disk: written while its run goes on, read as far as it goes. It does not
know what the lines say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from zlib import decompressobj

from batchgen.errors import UserError
from batchgen.logbook import GZIP, DecisionLog

MOST_BYTES = 1 << 28
"""A log that has grown to 256 MiB ends there: it is to explain a job, not to fill its disk."""
FLUSH_S = 1.0
"""What a killed process had decided in its last second is not in its log."""
READ_BYTES = 1 << 16
GZIP_BEGIN = b"\x1f\x8b"


class LogFile:
    """Where the packed bytes of a log go. Neither a disk that refuses nor the limit of size stops
    the job: `say` is told once, and the log ends there."""

    def __init__(
        self, path: Path, say: Callable[[str], None], *, most_bytes: int = MOST_BYTES
    ) -> None:
        self._path, self._say, self._most_bytes = path, say, most_bytes
        self._log: DecisionLog | None = None
        self._num_bytes = 0
        self._next_s = 0.0
        try:
            self._file = path.open("wb", buffering=0)
            self._is_open = True
        except OSError as error:
            self._is_open = False
            self._end(error.strerror or str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._log is not None:
            self._log.close()
        self._shut()

    def follow(self, log: DecisionLog) -> None:
        """The log whose sink is `write`; its header is on the disk before the first decision."""
        self._log = log
        log.flush()

    def write(self, packed: bytes) -> None:
        """More bytes of the log, on the disk as far as it takes them."""
        if not self._is_open:
            return
        if self._num_bytes + len(packed) > self._most_bytes:
            self._end(f"it has reached {self._most_bytes >> 20} MiB")
            return
        try:
            rest = memoryview(packed)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._file.write(rest) :]
            self._num_bytes += len(packed)
        except OSError as error:
            self._end(error.strerror or str(error))

    def now_and_then(self) -> None:
        """Called often: once a second what was decided can be read from the file."""
        if self._log is not None and self._is_open and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + FLUSH_S
            self._log.flush()

    def _end(self, why: str) -> None:
        self._shut()
        self._say(f"note: the decision log {self._path} ends here, the job goes on: {why}")

    def _shut(self) -> None:
        if self._is_open:
            self._is_open = False
            self._file.close()


class PackedLines:
    """Iterates over the whole lines of a packed log, `num_lines` of them. Afterwards `is_cut` says
    whether it has no end, as a killed process leaves it. Raises UserError for what is no gzip,
    `zlib.error` where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_lines = 0
        self.is_cut = False

    def __iter__(self) -> Iterator[bytes]:
        gunzip = decompressobj(GZIP)
        begun = b""
        with self._path.open("rb") as file:
            if not GZIP_BEGIN.startswith(file.read(2)):
                raise UserError(f"{self._path} is not gzip", remedy="give a decision log")
            file.seek(0)
            while not gunzip.eof and (packed := file.read(READ_BYTES)):
                *whole, begun = (begun + gunzip.decompress(packed)).split(b"\n")
                self.num_lines += len(whole)
                yield from whole
        self.is_cut = not gunzip.eof
        if begun and not self.is_cut:
            self.num_lines += 1
            yield begun
