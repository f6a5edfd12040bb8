"""Files of rows, whatever their form: JSON lines, CSV, Parquet or lines of text, gzip of any.

Each gives (line from 1, object or what is wrong with it), a few at a time. A bad row never hurts
another one. Knows nothing of what a row means.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

from batchgen.errors import UserError
from batchgen.job.fingerprint import file_digest
from batchgen.job.jsonl import (
    BOM,
    MAX_LINE_BYTES,
    BadLine,
    InputDigest,
    bounded_lines,
    parse_object,
    unreadable,
)
from batchgen.oneline import named

FORMS = ("jsonl", "csv", "parquet", "text")
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
PARQUET_ROWS = 1024

Raw = bytes | dict[str, Any] | BadLine
"""A row as it lies in its file: a line, where making an object of it can wait."""
Item = tuple[int, dict[str, Any] | BadLine]
Lines = Iterator[tuple[int, bytes | BadLine]]


def form_of(path: Path, wanted: str = "auto") -> str:
    """The form of a file: as said, else by its name, else what it begins with. Raises UserError."""
    if wanted != "auto":
        if wanted not in FORMS:
            raise UserError(
                f"--input-format is '{wanted}'", remedy=f"choose one of auto, {', '.join(FORMS)}"
            )
        return wanted
    suffixes = [one.lower() for one in path.suffixes if one.lower() != ".gz"]
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    return "parquet" if _begins(path, PARQUET_MAGIC) else "jsonl"


def read_input(
    path: Path,
    form: str = "jsonl",
    max_line_bytes: int = MAX_LINE_BYTES,
    digest: InputDigest | None = None,
    typed: Collection[str] = (),
) -> Iterator[Item]:
    """The rows of a file; arguments and errors as of `read_raw`."""
    for number, raw in read_raw(path, form, max_line_bytes, digest, typed):
        yield number, value_of(raw, form)


def read_raw(
    path: Path,
    form: str = "jsonl",
    max_line_bytes: int = MAX_LINE_BYTES,
    digest: InputDigest | None = None,
    typed: Collection[str] = (),
) -> Iterator[tuple[int, Raw]]:
    """The rows of a file, for `value_of`.

    `digest` takes the bytes of the file as they are on the disk, up to where it was read. `typed`:
    columns of CSV that are what JSON says of them; others are texts. Raises UserError for a file
    that cannot be read in this form.
    """
    digest = InputDigest() if digest is None else digest
    if form == "parquet":
        yield from _parquet(path, digest)
        return
    with _lines_of(path, max_line_bytes, digest) as lines:
        if form == "csv":
            yield from _csv(path, lines, max_line_bytes, typed)
        else:
            yield from _filled(lines)


def value_of(raw: Raw, form: str) -> dict[str, Any] | BadLine:
    """The object of a row, or what is wrong with it."""
    if not isinstance(raw, bytes):
        return raw
    if form != "text":
        return parse_object(raw)
    text = _decoded(raw)
    return {"prompt": text} if isinstance(text, str) else text


def column_names(path: Path, form: str) -> list[str] | None:
    """The columns that every row of a file has, None where each row has its own. Raises UserError
    as `read_raw`."""
    if form == "csv":
        with _lines_of(path, MAX_LINE_BYTES, InputDigest()) as lines:
            source = _Texts(lines)
            return _header(path, _csv_reader(path, source), source)
    if form == "parquet":
        with _parquet_file(path) as file:
            names: list[str] = file.schema_arrow.names
            return names
    return None


def filled_lines(path: Path) -> Iterator[tuple[int, bytes | BadLine]]:
    """(number from 1, bytes) of the lines of JSON or text that are rows: all that are not blank.
    Raises UserError as `read_input`."""
    with _lines_of(path, MAX_LINE_BYTES, InputDigest()) as lines:
        yield from _filled(lines)


@contextmanager
def _lines_of(path: Path, most: int, digest: InputDigest) -> Iterator[Lines]:
    try:
        file: BinaryIO = path.open("rb", buffering=io.DEFAULT_BUFFER_SIZE)
    except OSError as error:
        raise unreadable(path, error) from None
    with file, closing(_unpacked(path, file, digest)) as lines_file:
        whole = digest if lines_file is file else None
        yield _checked(bounded_lines(_Patient(path, lines_file), most, whole), most)


def _begins(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise unreadable(path, error) from None


class _Hashing(io.RawIOBase):
    """A file whose bytes go through a digest as they are read."""

    def __init__(self, file: BinaryIO, digest: InputDigest) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._digest.take(data)
        buffer[: len(data)] = data
        return len(data)


class _Patient:
    """`readline` of a file; what is wrong with it is a UserError."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file

    def readline(self, size: int) -> bytes:
        try:
            return self._file.readline(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{self._path} is damaged: {named(error)}", remedy="make it again, or unpack it"
            ) from None
        except OSError as error:
            raise unreadable(self._path, error) from None


def _unpacked(path: Path, file: BinaryIO, digest: InputDigest) -> BinaryIO:
    if not _begins(path, GZIP_MAGIC):
        return file
    hashing: Any = io.BufferedReader(_Hashing(file, digest))
    return gzip.GzipFile(fileobj=hashing)  # type: ignore[return-value]


def _filled(lines: Lines) -> Lines:
    for number, line in lines:
        if isinstance(line, BadLine) or line.strip():
            yield number, line


def _checked(lines: Iterator[bytes], most: int) -> Lines:
    for number, raw in enumerate(lines, start=1):
        line = raw.removeprefix(BOM) if number == 1 else raw
        if len(line) > most:
            message = f"the line is longer than {most} bytes"
            yield number, BadLine(code="line_too_long", message=message)
        else:
            yield number, line


def _decoded(line: bytes) -> str | BadLine:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadLine(code="invalid_utf8", message=f"byte {error.start} is not valid UTF-8")


# -- CSV ------------------------------------------------------------------------------------------


class _Texts:
    """Lines for the CSV reader; remembers those of the row that it reads, and what was wrong with
    them. No generator: after the last line it can give some again."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._again: deque[tuple[int, bytes | BadLine]] = deque()
        self._held: list[tuple[int, bytes | BadLine]] = []
        self.bad: BadLine | None = None
        self.number = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        number, line = self._again.popleft() if self._again else next(self._lines)
        self.number = number
        self._held.append((number, line))
        text = line if isinstance(line, BadLine) else _decoded(line)
        if isinstance(text, BadLine):
            self.bad = text
            return "\n"  # a row without fields
        return text + "\n"

    def next_row(self) -> None:
        """The lines that come are another row's."""
        self._held.clear()
        self.bad = None

    @property
    def first(self) -> int:
        """The number of the line on which the row begins."""
        return self._held[0][0] if self._held else self.number

    def only_first(self) -> None:
        """All lines of the row but its first come again."""
        self._again.extendleft(reversed(self._held[1:]))


def _csv(path: Path, lines: Lines, most: int, typed: Collection[str]) -> Iterator[Item]:
    """Rows below a header. A field may hold newlines in quotes. Rows are counted by the line on
    which they end. Where quotes do not close as they should, only the line on which they were
    opened is lost: those after it are read anew, as rows."""
    source = _Texts(lines)
    csv.field_size_limit(most)
    reader = _csv_reader(path, source)
    header = _header(path, reader, source)
    while True:
        source.next_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            first, last = source.first, source.number
            message = f"{error!s:.120}"
            if last > first:
                message = f"a quote that opens here is not closed as it should be: {message}, on "
                message += f"line {last}; close it, or double it if it is part of a text"
            source.only_first()
            yield first, BadLine(code="invalid_csv", message=message)
            continue
        if source.bad is not None:
            yield source.number, source.bad
        elif len(fields) not in (0, len(header)):
            message = f"the row has {len(fields)} fields, the header {len(header)}"
            if source.first < source.number:
                message += f"; it goes from line {source.first} to line {source.number}"
            yield source.number, BadLine(code="invalid_csv", message=message)
        elif fields:
            yield source.number, _row(dict(zip(header, fields, strict=True)), typed)


def _csv_reader(path: Path, source: _Texts) -> Iterator[list[str]]:
    delimiter = "\t" if ".tsv" in (one.lower() for one in path.suffixes) else ","
    return csv.reader(source, delimiter=delimiter, strict=True)


def _header(path: Path, reader: Iterator[list[str]], source: _Texts) -> list[str]:
    try:
        header = next((one for one in reader if one), [])
    except csv.Error as error:
        raise UserError(
            f"{path}: its header is no CSV ({error!s:.80})", remedy="check it"
        ) from None
    if source.bad is not None or not header:
        why = "holds no rows" if source.bad is None else "begins with what is no text"
        raise UserError(f"{path} {why}", remedy="begin with a line of column names")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two columns '{twice:.60}'", remedy="name each once")
    return header


def _row(row: dict[str, str], typed: Collection[str]) -> dict[str, Any]:
    """An empty field of an option, or of an id, is none."""
    found: dict[str, Any] = {}
    for name, text in row.items():
        if name in typed:
            value = parse_object(f'{{"value":{text}}}'.encode("utf-8", "surrogatepass"))
            if text:
                if isinstance(value, BadLine) or len(value) > 1:
                    found[name] = text
                else:
                    found[name] = value["value"]
        elif text or name not in ("custom_id", "id"):
            found[name] = text
    return found


# -- Parquet --------------------------------------------------------------------------------------


def _parquet(path: Path, digest: InputDigest) -> Iterator[Item]:
    number = 0
    with _parquet_file(path) as file:
        for batch in file.iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, _plain_row(row)
    digest.is_whole_file(*file_digest(path))


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    """The file, open; what is wrong with it, also while it is read, is a UserError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            yield pq.ParquetFile(file)
    except OSError as error:
        if error.errno is None:  # pyarrow's own errors are of this kind too
            raise UserError(
                f"{path} is no Parquet file ({error!s:.80})", remedy="check it"
            ) from None
        raise unreadable(path, error) from None
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path} is no Parquet file ({error!s:.80})", remedy="check it") from None


def _plain_row(row: dict[str, Any]) -> dict[str, Any] | BadLine:
    """A row as JSON would have it: no nulls, ids as texts."""
    found: dict[str, Any] = _without_nulls(row)
    for name in ("custom_id", "id"):
        if isinstance(found.get(name), int):
            found[name] = str(found[name])
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        return BadLine(code="invalid_row", message=f"a value is none of JSON: {error!s:.80}")
    return found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value
