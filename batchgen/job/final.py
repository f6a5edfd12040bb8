"""The output of a job from its journal: every line, durably, under its name at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from batchgen.errors import Unfinished
from batchgen.job.placing import NotPlaced, place
from batchgen.paths import remove, temporary_name

GO_ON = "then go on with --resume always"
WRITE_BYTES = 1 << 20


def write_final(
    path: Path, lines: Iterable[bytes], *, force: bool, placing: Callable[[str], None]
) -> str:
    """Put the lines at `path` and return the SHA-256 of the file; `placing` is told of it just
    before the file gets its name.

    Raises Unfinished when the disk or the name refuses; then nothing is lost, for the journal has
    all that was answered.
    """
    temporary = temporary_name(path)
    digest = hashlib.sha256()
    keep = False
    try:
        # Read again if its name is taken away.
        with temporary.open("x+b", buffering=WRITE_BYTES) as file:
            for line in lines:
                file.write(line)
                file.write(b"\n")
                digest.update(line)
                digest.update(b"\n")
            file.flush()
            os.fsync(file.fileno())
            placing(digest.hexdigest())
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
    return digest.hexdigest()
