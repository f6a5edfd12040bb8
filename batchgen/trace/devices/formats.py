"""Public device traces, into the project's own format: spot machines that came and went, and times
of workers. How a file is told from others, and what its columns are; slots.py and workers.py have
the rules."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from batchgen.errors import DataError, UserError
from batchgen.trace.devices.events import MAX_PS, MAX_S, DeviceTrace, Trouble
from batchgen.trace.devices.read import BadField, load
from batchgen.trace.devices.slots import places_of, places_of_counts
from batchgen.trace.devices.workers import Sample, slow_workers
from batchgen.trace.formats.times import date_ps, scaled_ps
from batchgen.trace.lines import read_lines
from batchgen.trace.rejects import Rejects
from batchgen.trace.schema import trace_name

OWN = "batchgen"
GCP_PLACES = 64
"""Machines that the collectors of the GCP trace asked for."""
MAX_WORKERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """notice_s: how long before a reclaim it was told; None: as the format's provider does. seed:
    where a format says how many machines went and not which. as_nodes: a machine is a node of the
    cluster, not a GPU."""

    notice_s: float | None = None
    seed: int = 0
    as_nodes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFormat:
    """One public format. `matches` sees the fields of the first line."""

    name: str
    summary: str
    matches: Callable[[list[str]], bool]
    read: Callable[[Path, ImportOptions, Rejects], DeviceTrace]


def import_devices(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",  # noqa: A002 - the word users know from the command line
    skip_bad: bool = False,
    options: ImportOptions | None = None,
) -> DeviceTrace:
    """A device trace of any known format. Raises UserError for an unknown one, DataError for a bad
    line unless `skip_bad`."""
    source = Path(path)
    if format not in ("auto", *format_names()):
        raise UserError(
            f"unknown format of device traces {format!r}",
            remedy=f"known: auto, {', '.join(format_names())}",
        )
    name = detect(source) if format == "auto" else format
    if name == OWN:
        return load(source, skip_bad=skip_bad)
    options = options or ImportOptions()
    if options.notice_s is not None and not 0 <= options.notice_s <= MAX_S:
        raise UserError(f"a notice of {options.notice_s:g} s", remedy=f"give 0 to {MAX_S}")
    rejects = Rejects(skip_bad=skip_bad)
    spec = next(one for one in FORMATS if one.name == name)
    trace = spec.read(source, options, rejects)
    if not trace.troubles and not trace.span_ps:
        raise DataError("no usable lines", path=str(path), remedy="check the file and its format")
    if options.as_nodes:
        moved = tuple(msgspec.structs.replace(one, gpu=-1, node=one.gpu) for one in trace.troubles)
        trace = replace(trace, troubles=moved, gpus=0)
    return replace(trace, meta=trace.meta | rejects.as_meta())


def format_names() -> tuple[str, ...]:
    """Every name that `--format` takes besides auto."""
    return (OWN, *(spec.name for spec in FORMATS))


def detect(path: Path) -> str:
    """The name of a file's format. Raises UserError if it is none."""
    fields: list[str] = []
    for _, line in read_lines(path):
        if isinstance(line, DataError):
            raise line
        if line.lstrip().startswith(b"{"):
            return OWN
        fields = [field.strip() for field in line.decode("utf-8", "replace").split(",")]
        break
    for spec in FORMATS:
        if spec.matches(fields):
            return spec.name
    shown = ", ".join(fields)[:80] or "nothing"
    raise UserError(
        f"{path}: not a format of device traces known here (its first line: {shown})",
        remedy=f"known: {', '.join(format_names())}; or write lines by docs/device-traces.md",
        code="unknown_format",
    )


# -- readers --------------------------------------------------------------------------------------


def _read_bamboo(path: Path, options: ImportOptions, rejects: Rejects) -> DeviceTrace:
    """`time_ms,add|remove,node`."""
    notice_ps = _notice(options, 120)
    changes: list[tuple[int, bool, str]] = []
    up: set[str] = set()

    def read(fields: list[str]) -> None:
        at_ps = _time(fields[0], "time_ms", "ms")
        what, name = fields[1].strip(), fields[2].strip()
        if what not in ("add", "remove"):
            raise BadField(f"{what[:40]!r} is neither add nor remove", "event", "correct it")
        if changes and at_ps < changes[-1][0]:
            raise BadField("earlier than the line before", "time_ms", "sort the lines by time")
        if (name in up) == (what == "add"):
            trouble = "added twice" if what == "add" else "removed and not there"
            raise BadField(f"{name[:40]!r} is {trouble}", "node", "correct the line")
        (up.add if what == "add" else up.remove)(name)
        changes.append((at_ps, what == "add", name))

    _each(path, rejects, 3, read)
    troubles, places = places_of(changes, notice_ps)
    return _made(path, "bamboo", troubles, places, changes[-1][0] if changes else 0)


def _read_bamboo_gcp(path: Path, options: ImportOptions, rejects: Rejects) -> DeviceTrace:
    """`date, time, machines that are up`."""
    notice_ps = _notice(options, 30)
    counts: list[tuple[int, int]] = []
    origin: list[int] = []

    def read(fields: list[str]) -> None:
        try:
            now = date_ps(f"{fields[0].strip()} {fields[1].strip()}")
        except ValueError as error:
            raise BadField(str(error), "time", "correct the line") from None
        origin.append(now)
        at_ps = now - origin[0]
        if not (counts[-1][0] if counts else 0) <= at_ps <= MAX_PS:
            raise BadField("not after the line before", "time", "sort the lines by time")
        count = _whole(fields[2], "instances")
        if count > GCP_PLACES:
            raise BadField(f"more than {GCP_PLACES} machines", "instances", "correct the line")
        counts.append((at_ps, count))

    _each(path, rejects, 3, read)
    troubles = places_of_counts(counts, GCP_PLACES, notice_ps, options.seed)
    return _made(path, "bamboo-gcp", troubles, GCP_PLACES, counts[-1][0] if counts else 0)


def _read_pai(path: Path, options: ImportOptions, rejects: Rejects) -> DeviceTrace:
    """`index,worker,gpu,time,batch_time_norm` under a header."""
    samples: list[Sample] = []

    def read(fields: list[str]) -> None:
        worker, duration = _whole(fields[1], "worker"), _whole(fields[4], "batch_time_norm")
        if worker >= MAX_WORKERS:
            raise BadField(f"worker {worker}", "worker", f"use 0 to {MAX_WORKERS - 1}")
        samples.append((worker, _time(fields[3], "time", "s"), duration))

    _each(path, rejects, 5, read, header=True)
    end_ps = max((sample[1] for sample in samples), default=0)
    places = max((sample[0] for sample in samples), default=-1) + 1
    return _made(path, "pai-minibatch", slow_workers(samples), places, end_ps)


def _is_bamboo(fields: list[str]) -> bool:
    return len(fields) == 3 and fields[0].isdecimal() and fields[1] in ("add", "remove")


def _is_gcp(fields: list[str]) -> bool:
    return len(fields) == 3 and fields[0].count("-") == 2 and fields[2].isdecimal()


def _is_pai(fields: list[str]) -> bool:
    return fields == ["", "worker", "gpu", "time", "batch_time_norm"]


FORMATS = (
    DeviceFormat(
        name="bamboo",
        summary="Bamboo's AWS spot traces: time in ms, add or remove, node",
        matches=_is_bamboo,
        read=_read_bamboo,
    ),
    DeviceFormat(
        name="bamboo-gcp",
        summary="Bamboo's GCP spot trace: date, time, machines that are up",
        matches=_is_gcp,
        read=_read_bamboo_gcp,
    ),
    DeviceFormat(
        name="pai-minibatch",
        summary="Alibaba PAI mini-batch times of the workers of one job",
        matches=_is_pai,
        read=_read_pai,
    ),
)


# -- what they share ------------------------------------------------------------------------------


def _each(
    path: Path,
    rejects: Rejects,
    width: int,
    read: Callable[[list[str]], None],
    *,
    header: bool = False,
) -> None:
    for number, fields in _rows(path, rejects):
        if header:
            header = False
            continue
        try:
            if len(fields) != width:
                raise BadField(f"{len(fields)} columns, not {width}", None, "correct the line")
            read(fields)
        except BadField as bad:
            rejects.bad(bad.located(str(path), number))


def _rows(path: Path, rejects: Rejects) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        if isinstance(line, DataError):
            rejects.bad(line)
            continue
        try:
            yield number, next(csv.reader([line.decode("utf-8")]), [])
        except (UnicodeDecodeError, csv.Error):
            bad = BadField("not a line of text with commas", None, "correct the line")
            rejects.bad(bad.located(str(path), number))


def _notice(options: ImportOptions, seconds: float) -> int:
    return round((seconds if options.notice_s is None else options.notice_s) * 10**12)


def _time(text: str, field: str, unit: str) -> int:
    try:
        at_ps = scaled_ps(text.strip(), unit)
    except ValueError as error:
        raise BadField(str(error), field, "correct the line") from None
    if not 0 <= at_ps <= MAX_PS:
        raise BadField(f"{text.strip()[:40]} is not within {MAX_S} s", field, "correct the line")
    return at_ps


def _whole(text: str, field: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise BadField(f"{text[:40]!r} is not a whole number", field, "correct the line")
    return int(text)


def _made(path: Path, name: str, troubles: list[Trouble], places: int, span_ps: int) -> DeviceTrace:
    meta: dict[str, Any] = {"format": name, "source_file": path.name}
    return DeviceTrace(
        name=trace_name(path).removesuffix(".txt"),
        troubles=tuple(troubles),
        gpus=places,
        span_ps=span_ps,
        meta=meta,
    )
