"""Reads ServeGen client sets: windows of arrivals, tables of lengths. Draws nothing."""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from batchgen.errors import DataError, UserError
from batchgen.trace.table import MAX_TOKENS

WINDOW_FILE = re.compile(r"(?:.*/)?chunk-(\d+)-(trace\.csv|dataset\.json)")
# Input of a multimodal client set is what all its kinds of input need together.
INPUT_TABLES = ("input_tokens", "text_tokens", "image_tokens", "audio_tokens", "video_tokens")
OUTPUT_TABLE = "output_tokens"
MAX_MEMBER_BYTES = 256 << 20
DEFAULT_WINDOW_S = 600.0


@dataclass(frozen=True, slots=True)
class Table:
    """A length table: values and their cumulative probabilities."""

    values: NDArray[np.int64]
    cumulative: NDArray[np.float64]

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        return self.values[np.searchsorted(self.cumulative, rng.random(n), side="right")]


@dataclass(frozen=True, slots=True)
class Window:
    """Arrivals of one client from start_s to end_s; shape belongs to Gamma or Weibull."""

    start_s: float
    end_s: float
    rate_per_s: float
    distribution: str
    shape: float

    def unit_gaps(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        """Gaps of mean 1 with the window's distribution."""
        if self.distribution == "Gamma":
            return rng.gamma(self.shape, 1.0 / self.shape, n)
        if self.distribution == "Weibull":
            return rng.weibull(self.shape, n) / math.gamma(1.0 + 1.0 / self.shape)
        return rng.exponential(1.0, n)


@dataclass(frozen=True, slots=True)
class Client:
    """One client: windows in order of time, and (start, input tables, output table) in order."""

    number: int
    windows: tuple[Window, ...]
    lengths: tuple[tuple[float, tuple[Table, ...], Table], ...]


def read_clients(path: Path, *, start_s: float, duration_s: float | None) -> list[Client]:
    """All clients by number, their windows cut to the wanted part. Raises UserError, DataError."""
    windows: dict[int, tuple[Window, ...]] = {}
    lengths: dict[int, tuple[tuple[float, tuple[Table, ...], Table], ...]] = {}
    for name, text in _members(path):
        match = WINDOW_FILE.fullmatch(name)
        if match is None:
            continue
        number = int(match[1])
        where = f"{path}/{PurePosixPath(name).name}"
        if match[2] == "trace.csv":
            windows[number] = _read_windows(text, where, start_s, duration_s)
        else:
            lengths[number] = _read_lengths(text, where)
    if not windows:
        raise UserError(
            f"{path}: no chunk-N-trace.csv inside, so it is no ServeGen client set",
            remedy="give the folder or archive with chunk-N-trace.csv and chunk-N-dataset.json",
            code="unknown_format",
        )
    # By number: the order in an archive or folder must not influence the draw.
    return [Client(n, windows[n], lengths.get(n, ())) for n in sorted(windows)]


def _members(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the client files in a folder or archive; nothing is written to disk."""
    try:
        if path.is_dir():
            for file in sorted(path.rglob("chunk-*")):
                if file.is_file():
                    yield file.name, file.read_text("utf-8")
            return
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or not WINDOW_FILE.fullmatch(member.name):
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise DataError(
                        f"{member.name} is larger than {MAX_MEMBER_BYTES >> 20} MiB",
                        path=str(path),
                        remedy="check the archive",
                    )
                yield member.name, content.read().decode("utf-8")
    except (OSError, EOFError, tarfile.TarError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read as a ServeGen client set ({error})",
            path=str(path),
            remedy="give a .tar.gz or a folder",
        ) from None


def _read_windows(
    text: str, where: str, start_s: float, duration_s: float | None
) -> tuple[Window, ...]:
    rows: list[tuple[float, float, str, float]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            texts = line.strip().split(",")
            row = (float(texts[0]), float(texts[1]), texts[3], float(texts[4]))
        except (ValueError, IndexError):
            raise DataError(
                "expected start, rate, variation, distribution and two parameters",
                path=where,
                line=number,
                remedy="check the file",
            ) from None
        if not all(math.isfinite(x) and x >= 0 for x in (row[0], row[1], row[3])):
            raise DataError(
                "negative or infinite number", path=where, line=number, remedy="check the file"
            )
        if row[1] > 0 and (row[2] not in ("Gamma", "Weibull", "Exponential") or not row[3]):
            raise DataError(
                f"unknown distribution {row[2]!r} or zero shape",
                path=where,
                line=number,
                remedy="known are Gamma, Weibull and Exponential",
            )
        rows.append(row)
    rows.sort()
    if not rows:
        return ()
    starts = [row[0] for row in rows]
    # The last window has no successor that ends it; it is as long as the shortest other one.
    length = min((b - a for a, b in pairwise(starts)), default=DEFAULT_WINDOW_S)
    ends = [*starts[1:], starts[-1] + length]
    stop = math.inf if duration_s is None else start_s + duration_s
    chosen = []
    for (begin, rate, distribution, shape), end in zip(rows, ends, strict=True):
        low, high = max(begin, start_s), min(end, stop)
        if low < high:
            chosen.append(Window(low, high, rate, distribution, shape))
    return tuple(chosen)


def _read_lengths(text: str, where: str) -> tuple[tuple[float, tuple[Table, ...], Table], ...]:
    """The windows that have tables. A window without them is served by the one before it."""
    try:
        raw: dict[str, dict[str, str]] = json.loads(text)
        found = []
        for start, tables in raw.items():
            inputs = tuple(
                table
                for name in INPUT_TABLES
                if (table := _table(tables.get(name, ""))) is not None
            )
            output = _table(tables.get(OUTPUT_TABLE, ""))
            if inputs and output is not None:
                found.append((float(start), inputs, output))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"not a table of lengths ({error})", path=where, remedy="check the file"
        ) from None
    return tuple(sorted(found, key=lambda entry: entry[0]))


def _table(text: str) -> Table | None:
    """A table written as "{104: 0.2, 105: 0.8}" (a Python dict as text, so not JSON)."""
    body = text.strip().removeprefix("{").removesuffix("}").strip()
    if not body:
        return None
    pairs = [pair.split(":") for pair in body.split(",")]
    values = np.array([int(key) for key, _ in pairs], dtype=np.int64)
    weights = np.array([float(weight) for _, weight in pairs])
    total = float(weights.sum())
    if not math.isfinite(total) or total <= 0 or weights.min() < 0:
        raise ValueError("probabilities must be positive numbers")
    if values.min() < 0 or values.max() > MAX_TOKENS:
        raise ValueError("lengths out of range")
    keep = weights > 0
    cumulative = np.cumsum(weights[keep]) / total
    cumulative[-1] = 1.0
    return Table(values[keep], cumulative)
