"""Reads measured inter-token times (aiconfigurator's silicon sample); judges no row."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from batchgen.errors import DataError
from batchgen.paths import has_file

SHIPPED = Path(__file__).parents[2] / "catalog" / "silicon_sample.csv.gz"
_TEXTS = ("backend", "backend_version", "model_path", "system", "precision", "mode")
_COUNTS = ("isl", "osl", "batch_size", "tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
_TIMES = ("silicon_ttft_ms", "silicon_tpot_ms")
_COLUMNS = ("id", "silicon_data_source", *_TEXTS, *_COUNTS, *_TIMES)
_MEASURED_BY_INFERENCEX = re.compile(r"db-dump/|source_file=\d{4}-\d\d-\d\d\.csv")
_DYNAMO = re.compile(r"dynamo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement. Counts that the table leaves open are 0; `precision` is "" then.

    `prompt_tokens` and `output_tokens` are as the table names them, `batch` is per rank of
    attention; `ttft_s` and `tpot_s` are measured means. `line` is that of the file.
    """

    line: int
    source: str
    backend: str
    version: str
    model: str
    gpu: str
    precision: str
    mode: str
    prompt_tokens: int
    output_tokens: int
    batch: int
    tp: int
    attention_dp: int
    expert_tp: int
    ep: int
    ttft_s: float
    tpot_s: float

    @property
    def is_inferencex(self) -> bool:
        """Lengths are drawn from 0.8 to 1 of the named ones (random-range-ratio of its scripts)."""
        return _MEASURED_BY_INFERENCEX.search(self.source) is not None

    @property
    def is_dynamo(self) -> bool:
        """A deployment that may have several workers."""
        return _DYNAMO.search(self.source) is not None


def read_rows(path: Path = SHIPPED) -> list[Row]:
    """All rows of a CSV file, gzipped or not. Raises DataError with line and field."""
    try:
        with _opened(path) as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"has no column '{missing[0]}'",
                    path=str(path),
                    line=1,
                    remedy="give a table like aiconfigurator's silicon sample",
                )
            rows = list(_rows(reader, path))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise DataError(f"is no CSV table ({error!s:.80})", path=str(path)) from None
    if not rows:
        raise DataError("has no rows", path=str(path))
    return rows


def _opened(path: Path) -> TextIO:
    has_file(path)
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8", newline=""))
    return path.open("rt", encoding="utf-8", newline="")


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[Row]:
    for record in reader:
        line = reader.line_num
        if None in record or None in record.values():
            raise DataError("has not as many fields as the header", path=str(path), line=line)
        counts = {name: _count(record, name, path, line) for name in _COUNTS}
        ttft, tpot = (_time_s(record, name, path, line) for name in _TIMES)
        yield Row(
            line=line,
            source=record["silicon_data_source"],
            backend=record["backend"],
            version=record["backend_version"],
            model=record["model_path"],
            gpu=record["system"],
            precision=record["precision"],
            mode=record["mode"],
            prompt_tokens=counts["isl"],
            output_tokens=counts["osl"],
            batch=counts["batch_size"],
            tp=counts["tp_size"],
            attention_dp=counts["attention_dp_size"],
            expert_tp=counts["moe_tp_size"],
            ep=counts["moe_ep_size"],
            ttft_s=ttft,
            tpot_s=tpot,
        )


def _number(record: dict[str, str], name: str, path: Path, line: int) -> float:
    try:
        value = float(record[name])
    except ValueError:
        value = float("nan")
    if not 0.0 <= value < 1e9:
        raise DataError(
            f"must be a number of 0 or more, got {record[name]!r:.40}",
            path=str(path),
            line=line,
            field=name,
        )
    return value


def _count(record: dict[str, str], name: str, path: Path, line: int) -> int:
    """Whole numbers, some written as 8.0; left open is 0."""
    if not record[name]:
        return 0
    value = _number(record, name, path, line)
    if value != int(value):
        raise DataError(
            f"must be a whole number, got {record[name]!r:.40}",
            path=str(path),
            line=line,
            field=name,
        )
    return int(value)


def _time_s(record: dict[str, str], name: str, path: Path, line: int) -> float:
    value = _number(record, name, path, line)
    if value <= 0:
        raise DataError("must be above 0", path=str(path), line=line, field=name)
    return value / 1e3
