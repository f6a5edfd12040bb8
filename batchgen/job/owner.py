"""One owner per job folder: a lock that the system drops when the process ends, however it ends.

The file says who holds it, for the message to others. It is never trusted: after a crash it still
names a process, and that number may be another one's by now (in a container it is 1 each time).
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from batchgen.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: a lock of msvcrt would hide the file's text from readers
    fcntl = None  # type: ignore[assignment]

NAME = "owner.json"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """The folder is this process's until the end of the context. Raises UserError if another one
    has it."""
    path = folder / NAME
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}", remedy="check the folder of the job"
        ) from None
    with file:
        try:
            _lock(file, folder)
            _sign(file)
        except UserError:
            raise
        except BaseException:  # a signal, and nobody else's job is here: the file goes again
            with suppress(OSError):
                if [one.name for one in folder.iterdir()] == [NAME]:
                    path.unlink()
            raise
        yield


def owner_of(folder: Path) -> str | None:
    """Who has the job of a folder now ("process 12 on host", or "" if it does not say), None if
    nobody has."""
    if fcntl is None:
        return None
    try:
        with (folder / NAME).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return _whose(file) if error.errno in BUSY else None
    except OSError:
        pass
    return None


BUSY = (errno.EWOULDBLOCK, errno.EACCES)
TRIES, AGAIN_S = 5, 0.02  # who only looks (`owner_of`) holds a lock for a moment


def _sign(file: IO[str]) -> None:
    """Who has it; where the disk is full nobody is told, and the lock holds all the same."""
    told = {"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
    with suppress(OSError):
        file.seek(0)
        file.truncate()
        json.dump(told, file)
        file.flush()


def _lock(file: IO[str], folder: Path) -> None:
    if fcntl is None:
        return
    try:
        for again in reversed(range(TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in BUSY or not again:
                    raise
            time.sleep(AGAIN_S)
    except OSError as error:
        if error.errno not in BUSY:
            return  # a file system without locks (some network ones): nobody can own anything there
        raise UserError(
            f"the job in {folder} is running{' in ' * bool(whose := _whose(file))}{whose}",
            remedy="wait for it, or stop it and go on with --resume always",
            code="owned",
        ) from None


def _whose(file: IO[str]) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        file.seek(0)
        told = json.loads(file.read(1000))
        return f"process {int(told['pid'])} on {str(told['host'])[:60]}"
    return ""
