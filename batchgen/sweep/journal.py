"""What of a sweep is done, as lines of a file that only grows: a killed sweep goes on from here.

A line is whole or does not count: the last one may have been cut by whatever ended the process,
and any may have been damaged later.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from batchgen.errors import UserError

NAME = "runs.jsonl"


class Journal:
    """Results by key. One process writes; a lock that forked workers do not inherit keeps a second
    one away."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.results: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        self._file = self.path.open("a+b")
        try:
            _lock(self._file)
            whole = self._read()
            self._file.truncate(whole)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def _read(self) -> int:
        """Takes in what is there; the length of its whole lines in bytes."""
        assert self._file is not None
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
                result = entry["result"]  # type: ignore[index]
                if entry["crc32"] != _checksum(result):  # type: ignore[index]
                    break
                self.results[entry["key"]] = result  # type: ignore[index]
            except (ValueError, TypeError, KeyError, RecursionError):
                break
            whole += len(line)
        return whole

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Keeps a result, on the disk too, before it returns."""
        assert self._file is not None
        entry = {"key": key, "result": result, "crc32": _checksum(result)}
        line = json.dumps(entry, allow_nan=False)
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}", remedy="make room; then run it again"
            ) from None
        self.results[key] = result


def _checksum(result: Any) -> str:
    """Of what a line says: a line that was damaged is run again."""
    return f"{crc32(json.dumps(result).encode()):08x}"


def _lock(file: IO[bytes]) -> None:
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(
            f"another sweep writes {file.name}", remedy="wait for it, or give another --out"
        ) from None
