"""Lines of a plain or gzip file as bytes, with bounded memory. Knows nothing about JSON or CSV.

Splits on the newline byte only (str.splitlines would cut rows at U+2028 or U+0085), strips one
UTF-8 byte order mark at the start and one carriage return at the end of a line, and finds gzip by
its first bytes, not by the file name.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from batchgen.errors import DataError, UserError
from batchgen.paths import check_input, kind_of

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 16 << 20
GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    """The file's content as a byte stream, decompressed. UserError when it cannot be opened."""
    if kind_of(path) not in ("", "file"):  # a pipe or a device may never end, and is read twice
        check_input("file", path, remedy="give a JSONL or CSV file, plain or gzip")
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - the caller closes what it gets
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", remedy="check the path") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened ({error.strerror})", remedy="give a readable file"
        ) from None
    magic = file.read(2)
    file.seek(0)
    if magic == GZIP_MAGIC:
        # GzipFile closes only what it opened itself, and one name has one owner that way.
        file.close()
        return cast(BinaryIO, gzip.open(path, "rb"))
    return file


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes | DataError]]:
    """Yield (line number from 1, line) without blank lines.

    A line beyond MAX_LINE_BYTES comes as a DataError instead, so that the caller can skip it. A
    damaged gzip stream raises DataError: what follows the damage cannot be read.
    """
    number = 0
    rest = b""
    too_long = False
    with open_bytes(path) as file:
        while True:
            try:
                block = file.read(BLOCK_BYTES)
            except (EOFError, gzip.BadGzipFile, zlib.error, OSError) as error:
                raise DataError(
                    f"the file is damaged ({error})",
                    path=str(path),
                    line=number + 1,
                    remedy="fetch it again",
                    code="damaged_file",
                ) from None
            lines = (rest + block if rest else block).split(b"\n")
            rest = lines.pop() if block else b""
            for line in lines:
                number += 1
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if too_long or len(line) > MAX_LINE_BYTES:
                    too_long = False
                    yield number, _too_long(path, number)
                    continue
                line = line.removesuffix(b"\r")
                if line and not line.isspace():
                    yield number, line
            if not block:
                return
            if len(rest) > MAX_LINE_BYTES:
                rest, too_long = b"", True


def _too_long(path: str | os.PathLike[str], number: int) -> DataError:
    return DataError(
        f"line longer than {MAX_LINE_BYTES >> 20} MiB",
        path=str(path),
        line=number,
        remedy="a trace row holds numbers only; check that this is a text file with one row a line",
        code="line_too_long",
    )
