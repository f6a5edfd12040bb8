"""Reads a device trace: JSONL, plain or gzip, one trouble a line. docs/device-traces.md tells what
the fields mean; other formats are in batchgen.trace.devices.formats."""

from __future__ import annotations

import os
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import msgspec

from batchgen.errors import DataError
from batchgen.trace.devices.events import (
    FACTORS,
    KINDS,
    MAX_DEVICES,
    MAX_PS,
    MAX_S,
    NORMAL,
    TIMED,
    DeviceTrace,
    Trouble,
)
from batchgen.trace.lines import read_lines
from batchgen.trace.rejects import Rejects
from batchgen.trace.schema import arrival_to_ps, explain, trace_name

FORMAT_VERSION = 1
FIELDS = "at_s, kind, gpu or node, factor, for_s, deadline_s"
FACTOR_HINTS = {
    "slow": "2.0 makes every pass take twice as long",
    "host": "2.0 makes copies between HBM and host take twice as long",
    "skew": "it is the power-law exponent of the experts' load",
}


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the file."""

    at_s: Decimal
    kind: str
    gpu: int | None = None
    node: int | None = None
    factor: Decimal | None = None
    for_s: Decimal | None = None
    deadline_s: Decimal | None = None


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """The optional first line."""

    batchgen_devices: int
    name: str = ""
    gpus: Annotated[int, msgspec.Meta(ge=0, le=MAX_DEVICES)] = 0
    gpus_per_node: Annotated[int, msgspec.Meta(ge=0, le=MAX_DEVICES)] = 0
    span_s: Decimal = Decimal(0)
    meta: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the numbers of GPUs and nodes may be."""

    gpus: int = MAX_DEVICES
    gpus_per_node: int = 1


def load(
    path: str | os.PathLike[str], *, cluster: Cluster | None = None, skip_bad: bool = False
) -> DeviceTrace:
    """The trace of a file; with `cluster` its GPUs and nodes must exist there.

    A bad line raises DataError naming file, line and field; with `skip_bad` it is counted in
    `meta["skipped"]`. A file without any line is a trace of no trouble.
    """
    source = str(path)
    rejects = Rejects(skip_bad=skip_bad)
    header = Header(batchgen_devices=FORMAT_VERSION)
    span_ps = 0
    troubles: list[Trouble] = []
    decode = msgspec.json.Decoder(Line).decode
    first = True
    for number, line in read_lines(path):
        if isinstance(line, DataError):
            rejects.bad(line)
        elif first and b'"batchgen_devices"' in line:
            header, span_ps = _header(source, number, line)
        else:
            try:
                troubles.append(_trouble(decode(line), cluster or Cluster()))
            except BadField as bad:
                rejects.bad(bad.located(source, number))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                message, field = explain(error)
                remedy = "correct the line"
                if field is not None and message in ("missing", "unknown field"):
                    remedy = f"lines have the fields {FIELDS}"
                rejects.bad(BadField(message, field, remedy).located(source, number))
        first = False
    return DeviceTrace(
        name=header.name or trace_name(path),
        troubles=tuple(troubles),
        gpus=header.gpus,
        gpus_per_node=header.gpus_per_node,
        span_ps=span_ps,
        meta=header.meta | rejects.as_meta(),
    )


class BadField(Exception):
    """A value that no line may have."""

    def __init__(self, message: str, field: str | None, remedy: str) -> None:
        self.message, self.field, self.remedy = message, field, remedy

    def located(self, path: str, line: int) -> DataError:
        """The same, with its place."""
        return DataError(self.message, path=path, line=line, field=self.field, remedy=self.remedy)


def seconds_ps(value: Decimal, field: str) -> int:
    """Seconds as picoseconds. Raises BadField for what is no time of a trace."""
    picoseconds = arrival_to_ps(value)
    if not 0 <= picoseconds <= MAX_PS:
        raise BadField(
            f"{value} is not a time from 0 to {MAX_S} s",
            field,
            "give seconds from the start of the run",
        )
    return picoseconds


def _trouble(line: Line, cluster: Cluster) -> Trouble:
    kind = line.kind
    if kind not in KINDS:
        raise BadField(
            f"{kind[:40]!r} is no kind of trouble", "kind", f"use one of {', '.join(KINDS)}"
        )
    if kind not in TIMED and line.for_s is not None:
        raise BadField(f"a {kind} has no end of its own", "for_s", "leave it out")
    if kind != "notice" and line.deadline_s is not None:
        raise BadField(f"only a notice has a deadline, no {kind}", "deadline_s", "leave it out")
    gpu, node = _place(line, cluster)
    return Trouble(
        seconds_ps(line.at_s, "at_s"),
        kind,
        gpu,
        node,
        _factor(line),
        seconds_ps(line.for_s, "for_s") if line.for_s is not None else 0,
        seconds_ps(line.deadline_s, "deadline_s") if line.deadline_s is not None else 0,
    )


def _place(line: Line, cluster: Cluster) -> tuple[int, int]:
    gpu, node = line.gpu, line.node
    if line.kind == "skew":
        if gpu is not None or node is not None:
            field = "node" if gpu is None else "gpu"
            raise BadField("expert skew is one for the cluster", field, "leave it out")
        return -1, -1
    if gpu is not None and node is not None:
        raise BadField("a line is of a GPU or of a node", "node", "leave one out")
    if gpu is None and node is None:
        raise BadField("missing", "gpu", "give the number of a GPU, or of a node")
    if gpu is not None:
        if not 0 <= gpu < cluster.gpus:
            raise BadField(
                f"GPU {gpu} is not in this cluster", "gpu", f"use 0 to {cluster.gpus - 1}"
            )
        return gpu, -1
    nodes = -(-cluster.gpus // cluster.gpus_per_node)
    assert node is not None
    if not 0 <= node < nodes:
        raise BadField(f"node {node} is not in this cluster", "node", f"use 0 to {nodes - 1}")
    return -1, node


def _factor(line: Line) -> int:
    """In thousandths."""
    if line.kind not in FACTORS:
        if line.factor is not None:
            raise BadField(f"a {line.kind} has no factor", "factor", "leave it out")
        return 0
    low, high = FACTORS[line.kind]
    value = line.factor
    # Magnitudes first: 1e999 would become a thousand-digit integer.
    thousandths = -1
    if value is not None and value.is_finite() and value.adjusted() < 10:
        thousandths = round(value * NORMAL)
    if not low <= thousandths <= high:
        raise BadField(
            f"'{line.kind}' needs a factor from {low / NORMAL:g} to {high / NORMAL:g}",
            "factor",
            FACTOR_HINTS[line.kind],
        )
    return thousandths


def _header(source: str, number: int, line: bytes) -> tuple[Header, int]:
    try:
        header = msgspec.json.decode(line, type=Header)
        span_ps = seconds_ps(header.span_s, "span_s")
    except BadField as bad:
        raise bad.located(source, number) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message, field = explain(error)
        raise DataError(
            f"header: {message}",
            path=source,
            line=number,
            field=field,
            remedy="see docs/device-traces.md for the header",
        ) from None
    if header.batchgen_devices != FORMAT_VERSION:
        raise DataError(
            f"format version {header.batchgen_devices}, this program reads {FORMAT_VERSION}",
            path=source,
            line=number,
            field="batchgen_devices",
            remedy="use a newer batchgen or convert the trace again",
        )
    return header, span_ps
