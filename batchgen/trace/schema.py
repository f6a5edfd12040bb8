"""The JSONL trace format: load and save. Other formats are in batchgen.trace.formats.

An optional first line {"batchgen_trace": 1, "name": ..., ...} describes the trace; every other
line is one row. docs/trace-schema.md is the reference for users; the structs below are the truth.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec

from batchgen.errors import DataError
from batchgen.trace.lines import read_lines
from batchgen.trace.rejects import Rejects
from batchgen.trace.stages import MAX_STAGES, MAX_WAIT_PS
from batchgen.trace.table import (
    MAX_ARRIVAL_PS,
    MAX_TOKENS,
    PS_DECIMALS,
    Trace,
    TraceBuilder,
    make_trace,
)
from batchgen.trace.write import save

__all__ = ["FORMAT_VERSION", "Header", "Row", "Trace", "load", "make_trace", "save"]

FORMAT_VERSION = 1

Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)]
MaybeTokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
ROW_FIELDS = "prompt_tokens, output_tokens, id, max_output_tokens, arrival_s, group, prefix, stages"
STAGE_FIELDS = "prompt_tokens, output_tokens, wait_s"


class Stage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a row does after its output: wait, take a follow-up, generate again."""

    prompt_tokens: Tokens
    output_tokens: Tokens
    wait_s: Decimal = Decimal(0)


class Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One row of the file. Unknown fields are refused, so a misspelt one is not lost silently."""

    prompt_tokens: Tokens
    output_tokens: Tokens
    id: str | None = None
    max_output_tokens: MaybeTokens = 0
    # Decimal: a double cannot hold picoseconds beyond 2.5 hours, and a round trip must be exact.
    arrival_s: Decimal = Decimal(0)
    group: Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKENS)] = -1
    prefix: list[int] = []
    # Unset and no empty list: most traces have none, and a list per row takes time.
    stages: Annotated[list[Stage], msgspec.Meta(max_length=MAX_STAGES)] | msgspec.UnsetType = (
        msgspec.UNSET
    )


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """The optional first line."""

    batchgen_trace: int
    name: str = ""
    prefix_block_tokens: MaybeTokens = 0
    expert_skew: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    meta: dict[str, Any] = {}


def load(
    path: str | os.PathLike[str], *, skip_bad: bool = False, max_rows: int | None = None
) -> Trace:
    """Read a trace in batchgen's JSONL schema, plain or gzip.

    A bad line raises DataError naming file, line and field; with `skip_bad` it is counted in
    `meta["skipped"]` ({"lines": count, "first": [messages]}) instead. `max_rows` stops early.
    DataError also when no row is left.
    """
    source = str(path)
    header = Header(batchgen_trace=FORMAT_VERSION)
    rejects = Rejects(skip_bad=skip_bad)
    builder = TraceBuilder()
    decode = msgspec.json.Decoder(Row).decode
    first = True
    for number, line in read_lines(path):
        if max_rows is not None and len(builder) >= max_rows:
            break
        if isinstance(line, DataError):
            rejects.bad(line)
            first = False
            continue
        if first and b'"batchgen_trace"' in line:
            header = _header(source, number, line)
            first = False
            continue
        first = False
        try:
            row = decode(line)
            _add(builder, row, header.prefix_block_tokens)
        except _BadField as error:
            rejects.bad(_row_error(source, number, error.message, error.field, error.remedy))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            message, field = explain(error)
            rejects.bad(_row_error(source, number, message, field))
    if not len(builder):
        skipped = f" ({rejects.num_bad} bad lines skipped)" if rejects.num_bad else ""
        raise DataError(
            f"no rows{skipped}", path=source, remedy="give a trace with at least one row"
        )
    return builder.build(
        name=header.name or trace_name(path),
        prefix_block_tokens=header.prefix_block_tokens,
        expert_skew=header.expert_skew,
        meta=header.meta | rejects.as_meta(),
    )


def trace_name(path: str | os.PathLike[str]) -> str:
    """The file name without the endings that say how it is stored."""
    name = Path(path).name
    for ending in (".gz", ".tar", ".jsonl", ".json", ".csv"):
        name = name.removesuffix(ending)
    return name


class _BadField(Exception):
    def __init__(self, field: str, message: str, remedy: str) -> None:
        self.field, self.message, self.remedy = field, message, remedy


def _add(builder: TraceBuilder, row: Row, block_tokens: int) -> None:
    prefix = row.prefix
    if prefix:
        if not block_tokens:
            raise _BadField(
                "prefix",
                "the header does not say how many tokens a block has",
                'put {"batchgen_trace": 1, "prefix_block_tokens": N} on the first line',
            )
        if (len(prefix) - 1) * block_tokens >= row.prompt_tokens:
            raise _BadField(
                "prefix",
                f"{len(prefix)} blocks of {block_tokens} tokens, "
                f"but the prompt has {row.prompt_tokens} tokens",
                "list only the blocks of the prompt",
            )
    arrival_ps = 0
    if row.arrival_s:
        arrival_ps = arrival_to_ps(row.arrival_s)
        if arrival_ps < 0:
            raise _BadField(
                "arrival_s",
                f"{row.arrival_s} is not a time from 0 to {MAX_ARRIVAL_PS // 10**PS_DECIMALS} s",
                "give seconds from the start of the trace",
            )
    stages = row.stages
    if stages:  # checked before the row is added
        waits = [_wait_ps(number, stage) for number, stage in enumerate(stages)]
    try:
        builder.add(
            row.prompt_tokens,
            row.output_tokens,
            arrival_ps,
            prefix,
            row.id,
            row.max_output_tokens,
            row.group,
        )
    except OverflowError:
        raise _BadField("prefix", "a block id does not fit 64 bits", "use smaller ids") from None
    if stages:
        for stage, wait_ps in zip(stages, waits, strict=True):
            builder.stages.add(len(builder) - 1, stage.prompt_tokens, stage.output_tokens, wait_ps)


def _wait_ps(number: int, stage: Stage) -> int:
    if not stage.wait_s:
        return 0
    wait_ps = arrival_to_ps(stage.wait_s)
    if not 0 <= wait_ps <= MAX_WAIT_PS:
        raise _BadField(
            f"stages[{number}].wait_s",
            f"{stage.wait_s} is not a time from 0 to {MAX_WAIT_PS // 10**PS_DECIMALS} s",
            "give seconds from the end of the output before",
        )
    return wait_ps


def arrival_to_ps(seconds: Decimal) -> int:
    """Seconds to picoseconds, nearest; -1 if it is no number or outside int64."""
    # The magnitude is checked before the conversion: 1e999 would become a thousand-digit integer.
    if not seconds.is_finite() or seconds < 0 or seconds.adjusted() > 7:
        return -1
    picoseconds = round(seconds.scaleb(PS_DECIMALS))
    return picoseconds if picoseconds <= MAX_ARRIVAL_PS else -1


def _header(source: str, number: int, line: bytes) -> Header:
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message, field = explain(error)
        raise DataError(
            f"header: {message}",
            path=source,
            line=number,
            field=field,
            remedy="see docs/trace-schema.md for the header",
        ) from None
    if header.batchgen_trace != FORMAT_VERSION:
        raise DataError(
            f"format version {header.batchgen_trace}, this program reads {FORMAT_VERSION}",
            path=source,
            line=number,
            field="batchgen_trace",
            remedy="use a newer batchgen or convert the trace again",
        )
    return header


def explain(error: Exception) -> tuple[str, str | None]:
    """msgspec's message without its path syntax, and the field it is about."""
    if isinstance(error, RecursionError):
        return "brackets nested too deep", None
    if isinstance(error, UnicodeDecodeError):
        return "not valid UTF-8", None
    text = str(error)
    field = None
    if " - at `$." in text:
        text, _, path = text.partition(" - at `$.")
        field = path.rstrip("`")
        if not field.startswith("stages["):
            field = field.split("[")[0].split(".")[0]
        elif "missing required field `" in text or "unknown field `" in text:
            field += "." + text.split("`")[1]
            text = "missing" if "missing" in text else "unknown field"
    elif "missing required field `" in text or "unknown field `" in text:
        field = text.split("`")[1]
        text = "missing" if "missing" in text else "unknown field"
    text = text.replace("`", "")
    return text[:1].lower() + text[1:] if text.startswith("Expected") else text, field


def _row_error(
    source: str, number: int, message: str, field: str | None, remedy: str = ""
) -> DataError:
    if not remedy and field is not None and message in ("missing", "unknown field"):
        remedy = (
            f"stages have the fields {STAGE_FIELDS}"
            if field.startswith("stages[")
            else f"rows have the fields {ROW_FIELDS}; "
            "convert other formats with 'batchgen trace import'"
        )
    return DataError(
        message,
        path=source,
        line=number,
        field=field,
        remedy=remedy or "correct the line or skip bad lines with --skip-bad",
    )
