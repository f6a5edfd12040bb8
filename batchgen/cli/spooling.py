"""Standard input as a file that is read more than once, and a file that goes to standard output."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from batchgen.errors import Unfinished, UserError
from batchgen.paths import aside, check_input, kind_of

STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


@contextmanager
def spooled(path: Path) -> Iterator[Path]:
    """The input: itself, or for `-` and the pipes of a shell's `<(...)` a temporary copy of what
    comes. Raises UserError for what is no file."""
    text = str(path)
    is_stream = text == "-" or (
        text.startswith(STREAMS) and kind_of(path) in ("pipe", "device", "socket")
    )
    if not is_stream:
        check_input("input", path, remedy="give a file of rows")
        yield path
        return
    if text == "-" and sys.stdin.isatty():
        raise UserError("standard input is a terminal", remedy="pipe rows into it, or name a file")
    with aside("input") as folder:
        copy = folder / "input"
        try:
            with copy.open("wb") as file, _source(text) as source:
                shutil.copyfileobj(source, file, 1 << 20)
        except OSError as error:
            raise UserError(
                f"cannot keep the input in {tempfile.gettempdir()}: {error.strerror}",
                remedy="make room there, or name another folder in TMPDIR",
            ) from None
        yield copy


@contextmanager
def _source(text: str) -> Iterator[BinaryIO]:
    if text == "-":
        yield sys.stdin.buffer
    else:
        with open(text, "rb") as file:
            yield file


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Where the output goes: itself, or for `-` a temporary file, to be printed by `print_file`."""
    if str(path) != "-":
        yield path
        return
    with aside("output") as folder:
        yield folder / "answers"


def print_file(path: Path) -> None:
    """All of a file on standard output. Raises Unfinished where that refuses it."""
    try:
        sys.stdout.flush()
        out: Any = getattr(sys.stdout, "buffer", sys.stdout)
        with path.open("rb") as answers:
            shutil.copyfileobj(answers, out, 1 << 20)
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unfinished(
            f"cannot write standard output: {error.strerror}",
            remedy="make room, then go on with --resume always",
        ) from None
