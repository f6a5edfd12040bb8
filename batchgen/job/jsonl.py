"""Lines and JSON read defensively: bytes split on newline only, one bad line hurts no other.

Knows nothing of batch rows. Each hazard that the standard parser lets through (NaN, duplicate keys,
lone surrogates, endless lines) becomes a `BadLine` with a stable code. Most lines are read by
msgspec, which is several times as fast; where it refuses, or could differ, the standard parser is
asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec

from batchgen.errors import UserError

MAX_LINE_BYTES = 16 << 20
WAITING_BYTES = 1 << 16
MOST_NESTING = 500
"""Objects and lists one in the other."""
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, or of two
BACKSLASH = ord("\\")
COLON = b"\\u003"  # how an escape of a colon begins
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
        self._waiting: list[bytes] = []  # many short pieces are digested faster as one
        self._begin = 0  # of these, in the file
        self.num_bytes = 0

    def take(self, piece: bytes) -> None:
        """The next bytes of the file."""
        self._waiting.append(piece)
        self.num_bytes += len(piece)
        if self.num_bytes - self._begin > WAITING_BYTES:
            self._digest()

    def _digest(self) -> None:
        self._sha256.update(b"".join(self._waiting))
        self._waiting.clear()
        self._begin = self.num_bytes

    def is_whole_file(self, hexdigest: str, num_bytes: int) -> None:
        """The file was read in no order: its digest was taken of it as a whole."""
        self._known, self.num_bytes = hexdigest, num_bytes
        self._waiting.clear()

    def hexdigest(self) -> str:
        """Of the bytes so far."""
        self._digest()
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

    while line := file.readline(max_line_bytes + 2):
        if digest is not None:
            digest.take(line)
        piece = line
        while not piece.endswith(b"\n"):
            piece = file.readline(1 << 20)
            if not piece:
                break
            if digest is not None:
                digest.take(piece)
            if len(line) <= max_line_bytes:
                line += piece
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def parse_object(line: bytes) -> dict[str, Any] | BadLine:
    """One JSON object in strict reading, or what is wrong with it."""
    value = read_at_once(line, _ANY)
    return value if isinstance(value, dict) else exactly(line)


def read_at_once(line: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """What a decoder makes of a line, where that is all of the line and as it is read exactly; else
    None.

    msgspec refuses what `exactly` does, but for keys that come twice, of which the last one stays,
    and for deep nesting. A decoder of a type also leaves out keys that the type does not have.
    Whatever was left out shows in the number of colons: outside of strings each member of an object
    has one, and those in strings are written as they are unless as an escape, which is not tried.
    """
    try:
        value = decoder.decode(line)
        again = msgspec.json.encode(value)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if line.count(b":") != again.count(b":") or (BACKSLASH in line and COLON in line):
        return None
    # How deep msgspec can read depends on who asks, as with Python.
    if len(line) > 2 * MOST_NESTING and _is_deep(line, value):
        return None
    return value


def exactly(line: bytes) -> dict[str, Any] | BadLine:
    """As `parse_object`, by Python's own parser alone."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadLine(code="invalid_utf8", message=f"byte {error.start} is not valid UTF-8")
    try:
        if text.startswith("\ufeff"):  # a second mark; the decoder's own words for it mislead
            return BadLine(code="invalid_json", message="not valid JSON: a byte order mark")
        value = _decoded(text)
        # How deep Python itself can read depends on who asks.
        if len(line) > 2 * MOST_NESTING and _is_deep(line, value):
            raise RecursionError
        if "\\u" in text and HALF.search(text):  # only an escape can smuggle in a lone surrogate
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


def _decoded(text: str) -> Any:
    """As `_DECODER.decode`, which looks for blanks around the value before anything else."""
    try:
        value, end = _SCAN(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else _DECODER.decode(text)


def _is_deep(line: bytes, value: object) -> bool:
    """Whether it has more than `MOST_NESTING` objects and lists one in the other."""
    if line.count(b"[") + line.count(b"{") <= MOST_NESTING:
        return False
    level: list[Any] = [value]
    for _ in range(MOST_NESTING):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
        if not below:
            return False
        level = below
    return any(isinstance(one, dict | list) for one in level)


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
_ANY = msgspec.json.Decoder()
_SCAN: Any = _DECODER.scan_once  # type: ignore[attr-defined]
