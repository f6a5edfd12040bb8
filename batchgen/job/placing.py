"""A finished file gets its name: at once, never over a file that appeared, and never lost. It knows
nothing of what the file holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from batchgen.errors import UserError
from batchgen.paths import check_output, put, remove, temporary_name


class NotPlaced(UserError):
    """The file could not get its name; the message names the file that holds its bytes."""


def place(file: BinaryIO, temporary: Path, path: Path, *, force: bool) -> None:
    """Give `path` the bytes of `file`, which is open for reading under the name `temporary` and is
    on the disk already; then that name is gone.

    If the folder was removed meanwhile it is made again. `force` replaces a file that is there.
    Raises NotPlaced when it cannot be done; then the bytes are in the file that its message names.
    """
    try:
        kept = _kept(file, temporary, path)
    except OSError as error:
        raise NotPlaced(
            f"{path} cannot be written and its folder is gone: {error.strerror}",
            remedy="all answers are lost; give an output in a folder that stays",
        ) from None
    try:
        if force:
            check_output(path)  # a rename replaces whatever has come there meanwhile
            put(kept, path)
        else:
            _place_new(kept, path)
    except FileExistsError:
        raise NotPlaced(
            f"{path} appeared meanwhile; the answers are in {kept}",
            remedy="move them, or give --force next time",
        ) from None
    except UserError as error:
        raise NotPlaced(
            f"{error.message}; the answers are in {kept}", remedy="move them by hand"
        ) from None
    except OSError as error:
        raise NotPlaced(
            f"{path} cannot be put in place: {error.strerror}; the answers are in {kept}",
            remedy="move them by hand",
        ) from None
    except BaseException:  # a signal: the temporary is its maker's to remove, a copy is ours
        if kept != temporary:
            remove(kept)
        raise
    with suppress(OSError):  # it has its name: what follows only makes that durable
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _place_new(kept: Path, path: Path) -> None:
    """A link, unlike a rename, never replaces a file. Where there are no links (exFAT, some network
    file systems) an empty file takes the name first, which one maker alone can; then a rename over
    that. Raises FileExistsError, or another OSError, with nothing of ours left at `path`.
    """
    try:
        os.link(kept, path)
    except FileExistsError:
        raise
    except OSError:
        holder = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            mine = os.fstat(holder)
        finally:
            os.close(holder)
        try:
            if not os.path.samestat(mine, os.lstat(path)):
                raise FileExistsError(path) from None
            os.replace(kept, path)
        except BaseException:  # a signal too: an empty file is no output
            with suppress(OSError):
                if os.path.samestat(mine, os.lstat(path)):
                    path.unlink()
            raise
    else:
        with suppress(OSError):  # the output is in place; a second name of it harms nothing
            kept.unlink()


def _kept(file: BinaryIO, temporary: Path, path: Path) -> Path:
    """Where the bytes of `file` are: `temporary`, or a copy if somebody took that name away."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), os.lstat(temporary)):
            return temporary
    last: OSError | None = None
    for folder in _folders(path):
        copy = temporary_name(folder / path.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.seek(0)
            with copy.open("xb") as to:
                shutil.copyfileobj(file, to)
                to.flush()
                os.fsync(to.fileno())
            return copy
        except OSError as error:
            last = error
            with suppress(OSError):
                remove(copy)
        except BaseException:
            remove(copy)
            raise
    assert last is not None
    raise last


def _folders(path: Path) -> Iterator[Path]:
    """Where a copy may go: to the output's folder; if that cannot be, where temporary files are."""
    yield path.parent
    with suppress(OSError):  # FileNotFoundError: nothing can be written anywhere
        yield Path(tempfile.gettempdir())
