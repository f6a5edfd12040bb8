"""Lines and JSON read defensively: bytes split on newline only, one bad line hurts no other.

Knows nothing of batch rows. Each hazard that the standard parser lets through (NaN, duplicate keys,
lone surrogates, endless lines) becomes a `BadLine` with a stable code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from batchgen.errors import UserError

MAX_LINE_BYTES = 16 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """Why a line is not a JSON object. Codes: invalid_utf8, invalid_json, line_too_long,
    not_an_object."""

    code: str
    message: str


class InputDigest:
    """SHA-256 of the bytes that a reader took from its file, and how many they are.

    Fed while the file is read, so that it is the digest of what the run saw whatever becomes of the
    file. A reader that stops early has taken the first `num_bytes` bytes.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._known = ""
        self.num_bytes = 0

    def take(self, piece: bytes) -> None:
        """The next bytes of the file."""
        self._sha256.update(piece)
        self.num_bytes += len(piece)

    def is_whole_file(self, hexdigest: str, num_bytes: int) -> None:
        """The file was read in no order: its digest was taken of it as a whole."""
        self._known, self.num_bytes = hexdigest, num_bytes

    def hexdigest(self) -> str:
        """Of the bytes so far."""
        return self._known or self._sha256.hexdigest()


def unreadable(path: Path, error: OSError) -> UserError:
    """What the system says of an input, as an error of the user's."""
    reason = error.strerror or type(error).__name__
    return UserError(f"cannot read {path}: {reason}", remedy="check the input path")


class LineReader(Protocol):
    """What `bounded_lines` reads; its errors are its own affair."""

    def readline(self, size: int) -> bytes: ...


def bounded_lines(
    file: LineReader, max_line_bytes: int, digest: InputDigest | None
) -> Iterator[bytes]:
    """Lines of bounded size; the rest of an over-long one is read and thrown away in pieces. The
    digest takes every byte up to the end of the line that was given last."""

    def read(size: int) -> bytes:
        piece = file.readline(size)
        if digest is not None:
            digest.take(piece)
        return piece

    while line := read(max_line_bytes + 2):
        piece = line
        while not piece.endswith(b"\n"):
            piece = read(1 << 20)
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
        if text.startswith("\ufeff"):  # a second mark; the decoder's own words for it mislead
            return BadLine(code="invalid_json", message="not valid JSON: a byte order mark")
        value = _DECODER.decode(text)
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
        seen: set[str] = set()  # linear: an object of a million keys is one line like any other
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name!r:.60} appears twice")
            seen.add(name)
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text:.40} is out of range")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)
"""Made once: that takes as long as a short line."""
