"""The output of a job from its journal: every line, durably, under its name at once."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from batchgen.errors import Unfinished
from batchgen.job.placing import NotPlaced, place
from batchgen.paths import remove, temporary_name

GO_ON = "then go on with --resume always"
WRITE_BYTES = 1 << 20


def write_final(
    path: Path,
    lines: Iterable[bytes],
    *,
    force: bool,
    placing: Callable[[str], None] = lambda digest: None,
    form: str = "jsonl",
) -> str:
    """Put the lines at `path` and return the SHA-256 of the file; `placing` is told of it just
    before the file gets its name. form: "jsonl", or "parquet" (`batchgen.job.parquet_output`).

    Raises Unfinished when the disk or the name refuses; then nothing is lost, for the journal has
    all that was answered.
    """
    temporary = temporary_name(path)
    keep = False
    try:
        # Read again if its name is taken away.
        with temporary.open("x+b", buffering=WRITE_BYTES) as file:
            hashing = _Hashing(file)
            _WRITERS[form](hashing, lines)
            file.flush()
            os.fsync(file.fileno())
            digest = hashing.digest.hexdigest()
            placing(digest)
            place(file, temporary, path, force=force)
    except NotPlaced as error:
        keep = True
        raise Unfinished(error.message, remedy=f"{error.remedy}; or, {GO_ON}") from None
    except OSError as error:
        raise Unfinished(
            f"cannot write {path}: {error.strerror or error}; all answers are kept",
            remedy=f"make room, {GO_ON}",
        ) from None
    finally:
        if not keep:
            with suppress(OSError):
                remove(temporary)
    return digest


class _Hashing(io.RawIOBase):
    """A file of which all that is written is hashed; it is written from its beginning on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


def _write_lines(file: Any, lines: Iterable[bytes]) -> None:
    for line in lines:
        file.write(line + b"\n")


def _write_parquet(file: Any, lines: Iterable[bytes]) -> None:
    from batchgen.job.parquet_output import write_parquet

    write_parquet(file, lines)


_WRITERS = {"jsonl": _write_lines, "parquet": _write_parquet}
OUTPUT_FORMS = tuple(_WRITERS)


def form_of_name(path: Path) -> str:
    """The form that an output of this name has, if nobody says another."""
    return "parquet" if path.suffix.lower() in (".parquet", ".pq") else "jsonl"
