"""What lies at a path that a user named, and what may lie beside it for a while. It opens nothing.

Outputs are put in place by a rename, which would put a file where a pipe or a device was; inputs
are read more than once, which a pipe does not bear.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchgen.errors import UserError

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


def kind_of(path: str | os.PathLike[str]) -> str:
    """What is there, through links: "file", "folder", "pipe", "socket", "device", "" for nothing.

    Raises UserError for a path that cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "broken link" if os.path.islink(path) else ""
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot look at {str(path)!r:.200}: {why}", remedy="check it") from None
    return KINDS.get(stat.S_IFMT(mode), "device")


def check_input(what: str, path: str | os.PathLike[str], *, remedy: str) -> None:
    """Raises UserError unless a regular file is there; `what` is "trace" or "--faults"."""
    kind = kind_of(path)
    if kind != "file":
        trouble = {"": "does not exist", "folder": "is a folder"}.get(
            kind, f"is not a regular file, but a {kind}"
        )
        raise UserError(f"{what} {path} {trouble}", remedy=remedy)


def has_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file of a checkpoint is there. Raises UserError if what is there is no regular file
    (a pipe would be waited for, a broken link is not the same as no file) or cannot be read."""
    kind = kind_of(path)
    if kind not in ("", "file"):
        raise UserError(f"{path} is not a regular file, but a {kind}", remedy="put the file there")
    if kind and not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read", remedy="change its permissions")
    return bool(kind)


def check_new_folder(path: Path) -> None:
    """Raises UserError unless a folder is there, or can be made there with those above it."""
    here = path
    while not (kind := kind_of(here)) and here != here.parent:
        here = here.parent
    if kind == "file" and here == path:
        raise UserError(f"{path} is a file", remedy="give a folder for the run directory")
    if kind != "folder":
        raise UserError(
            f"{path} cannot be a folder: {here} is a {kind}", remedy="name another folder"
        )


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises UserError unless nothing or a regular file is there. Call it before any long work."""
    kind = kind_of(path)
    if kind == "folder":
        raise UserError(f"{path} is a folder", remedy="name an output file")
    if kind not in ("", "file"):
        raise UserError(
            f"{path} is not a regular file, but a {kind}, and is not replaced",
            remedy="name an output file",
        )


def check_new_output(path: Path, *, force: bool) -> None:
    """`check_output`, and UserError for a file that is there without `force`."""
    check_output(path)
    if path.exists() and not force:
        raise UserError(f"{path} exists", remedy="give --force to replace it")


def check_result(path: Path, *, force: bool) -> None:
    """`check_new_output`, and UserError for a folder that is missing: before a long run, not after
    it."""
    if not path.parent.is_dir():
        raise UserError(f"folder {path.parent} does not exist", remedy="make it first")
    check_new_output(path, force=force)


def shown_path(path: Path) -> str:
    """A path as text that any file can hold: bytes that are no UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def temporary_name(path: Path) -> Path:
    """A name in the folder of `path` that nothing has.

    Known before anything is made, so that a signal that comes while the file is being opened leaves
    nothing behind. Neither a counter nor the process id: a run that was killed has left its file
    under that, and in a container the next one has the same id.
    """
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.tmp")


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A `temporary_name`; the file or folder that was made under it goes at the end."""
    temporary = temporary_name(path)
    try:
        yield temporary
    finally:
        remove(temporary)


@contextmanager
def aside(what: str) -> Iterator[Path]:
    """A folder of this user among temporary files, which goes at the end. Unlike those of
    `tempfile` its name is known before it is made: a signal in between leaves nothing."""
    folder = Path(tempfile.gettempdir()) / f"batchgen-{what}-{secrets.token_hex(6)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        remove(folder)


def put(temporary: Path, target: Path) -> None:
    """Gives what was made beside it the name `target`, at once; the rights of what had that name
    stay."""
    with suppress(FileNotFoundError):
        os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
    os.replace(temporary, target)


def write_whole(path: Path, data: bytes) -> None:
    """A file that is there with all these bytes, or as it was."""
    with beside(path) as temporary:
        temporary.write_bytes(data)
        put(temporary, path)


def remove(path: Path) -> None:
    """Take away the file or the folder, if there is one."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):  # macOS says the latter of a folder
        shutil.rmtree(path, ignore_errors=True)


def real_path(path: Path) -> Path:
    """Where a path leads, through links; a loop of them stays as it is (`resolve` would raise)."""
    return Path(os.path.realpath(path))
