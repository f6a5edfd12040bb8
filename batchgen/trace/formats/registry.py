"""Finds the format of a file and imports it. The formats themselves are in flat.py and servegen.py.

`--format auto` goes by column names and keys, never by the file name.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import msgspec

from batchgen.errors import DataError, UserError
from batchgen.trace.formats.flat import FLAT_FORMATS, FlatFormat, read_flat
from batchgen.trace.formats.servegen import ServeGenOptions, generate_servegen
from batchgen.trace.formats.vllm_run import requests_file, with_prefixes
from batchgen.trace.lines import open_bytes, read_lines
from batchgen.trace.schema import load
from batchgen.trace.table import Trace

OWN = "batchgen"
SERVEGEN = "servegen"
# A tar archive has this mark at this place (POSIX ustar header).
SNIFF_LINES = 100
TAR_MARK, TAR_MARK_AT = b"ustar", 257


def format_names() -> tuple[str, ...]:
    """Every name that `--format` takes besides auto."""
    return (OWN, *(spec.name for spec in FLAT_FORMATS), SERVEGEN)


def detect(path: str | os.PathLike[str]) -> str:
    """The name of the file's format. UserError that lists the known formats if there is none."""
    source = Path(path)
    source = requests_file(source)
    if source.is_dir() or _is_tar(source):
        return SERVEGEN
    kind, fields = _first_fields(source)
    if kind == "jsonl" and ("batchgen_trace" in fields or "prompt_tokens" in fields):
        return OWN
    for spec in FLAT_FORMATS:
        if spec.matches(kind, fields):
            return spec.name
    shown = ", ".join(sorted(fields)[:8]) or "none"
    raise UserError(
        f"{source}: not a trace format known here (first line has the fields: {shown})",
        remedy=f"known formats: {', '.join(format_names())}; or write rows by docs/trace-schema.md",
        code="unknown_format",
    )


def import_trace(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",  # noqa: A002 - the word users know from the command line
    skip_bad: bool = False,
    limit: int | None = None,
    servegen: ServeGenOptions | None = None,
    prefixes: str | os.PathLike[str] | None = None,
) -> Trace:
    """Read a trace of any known format. `limit` keeps the first rows only.

    `servegen` sets what to draw from a ServeGen client set. `prefixes`: a trace with the same rows
    in the same order, whose prefix blocks they get. Raises UserError for an unknown
    format or unreadable file, DataError for a bad line unless `skip_bad`.
    """
    if prefixes is not None:
        log = import_trace(path, format=format, skip_bad=skip_bad, limit=limit)
        return with_prefixes(log, import_trace(prefixes), Path(path), Path(prefixes))
    name = detect(path) if format == "auto" else format
    if name == OWN:
        return load(path, skip_bad=skip_bad, max_rows=limit)
    if name == SERVEGEN:
        trace = generate_servegen(path, servegen or ServeGenOptions())
        return trace if limit is None else trace.head(limit)
    spec = _flat(name)
    source = requests_file(Path(path))
    kind, fields = _first_fields(source)
    missing = [field for field in spec.requires if field not in fields]
    if kind != spec.kind or missing:
        what = f"has no field {', '.join(missing)}" if missing else f"is not {spec.kind}"
        raise UserError(
            f"{source}: {what}, so it is not in the format {name}",
            remedy="use --format auto",
            code="unknown_format",
        )
    return read_flat(spec, source, skip_bad=skip_bad, max_rows=limit)


def _flat(name: str) -> FlatFormat:
    for spec in FLAT_FORMATS:
        if spec.name == name:
            return spec
    raise UserError(
        f"unknown trace format {name!r}", remedy=f"known: auto, {', '.join(format_names())}"
    )


def _is_tar(path: Path) -> bool:
    with open_bytes(path) as file:
        try:
            start = file.read(TAR_MARK_AT + len(TAR_MARK))
        except (EOFError, OSError):
            return False  # damaged; the reader says so with the line
    return start[TAR_MARK_AT:] == TAR_MARK


def _first_fields(path: Path) -> tuple[str, set[str]]:
    """(csv or jsonl, the fields of the first line that can be read as one of them)."""
    saw_json = False
    for number, line in read_lines(path):
        if isinstance(line, DataError):
            raise line
        if line.lstrip().startswith(b"{"):
            try:
                return "jsonl", set(msgspec.json.decode(line, type=dict[str, Any]))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                saw_json = True  # a bad line: the reader reports it, if another tells the format
                if number < SNIFF_LINES:
                    continue
                break
        try:
            row = next(csv.reader([line.decode("utf-8")]), [])
        except (UnicodeDecodeError, csv.Error):
            return "unknown", set()
        return "csv", {column.strip() for column in row}
    if saw_json:
        return "jsonl", set()
    raise DataError("no rows", path=str(path), remedy="give a trace with at least one row")
