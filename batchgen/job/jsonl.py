"""JSON Lines read defensively: bytes split on newline only, one bad line never hurts another.

Knows nothing of batch rows. Each hazard that the standard parser lets through (NaN, duplicate keys,
lone surrogates, endless lines) becomes a `BadLine` with a stable code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from batchgen.errors import UserError

MAX_LINE_BYTES = 16 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """Why a line is not a JSON object. Codes: invalid_utf8, invalid_json, line_too_long,
    not_an_object."""

    code: str
    message: str


def read_objects(
    path: Path, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
    """(line number from 1, object or what is wrong with it); blank lines are passed over.

    Raises UserError if the file cannot be opened. Memory is bounded by the longest allowed line.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (closed below; opening has its own errors)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot read {path}: {reason}", remedy="check the input path") from None
    with file:
        for number, raw in enumerate(_lines(file, max_line_bytes), start=1):
            line = raw.removeprefix(BOM) if number == 1 else raw
            if len(line) > max_line_bytes:
                message = f"the line is longer than {max_line_bytes} bytes"
                yield number, BadLine(code="line_too_long", message=message)
            elif line.strip():
                yield number, parse_object(line)


def _lines(file: BinaryIO, max_line_bytes: int) -> Iterator[bytes]:
    """Lines of bounded size; the rest of an over-long one is read and thrown away in pieces."""
    while line := file.readline(max_line_bytes + 2):
        piece = line
        while not piece.endswith(b"\n"):
            piece = file.readline(1 << 20)
            if not piece:
                break
            if len(line) <= max_line_bytes:
                line += piece
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def parse_object(line: bytes) -> dict[str, Any] | BadLine:
    """One JSON object in strict reading, or what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadLine(code="invalid_utf8", message=f"byte {error.start} is not valid UTF-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
        if "\\u" in text:  # only an escape can smuggle in a lone surrogate
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return BadLine(code="invalid_json", message="a string holds half of a surrogate pair")
    except RecursionError:
        return BadLine(code="invalid_json", message="the nesting is too deep")
    except ValueError as error:
        return BadLine(code="invalid_json", message=f"not valid JSON: {error!s:.120}")
    if not isinstance(value, dict):
        return BadLine(code="not_an_object", message="the line is not a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r:.60} appears twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text:.40} is out of range")
    return value
