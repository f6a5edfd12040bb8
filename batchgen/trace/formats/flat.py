"""Public formats whose rows are flat records (CSV or JSONL), described as data, and their reader.

A format of this kind is one `FlatFormat` entry; it needs no code of its own. ServeGen client sets
are no request lists and live in servegen.py.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from batchgen.errors import DataError
from batchgen.trace.formats.times import date_ps, scaled_ps
from batchgen.trace.lines import read_lines
from batchgen.trace.rejects import Rejects
from batchgen.trace.schema import trace_name
from batchgen.trace.table import MAX_ARRIVAL_PS, MAX_TOKENS, Trace, TraceBuilder

Record = dict[str, Any] | list[str]

MAX_DAYS = MAX_ARRIVAL_PS // 10**12 // 86400
ZERO_OUTPUT = "zero output tokens (a failed or empty request)"
ZERO_PROMPT = "zero prompt tokens (a failed or empty request)"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatFormat:
    """Which field of a public format is which column.

    `requires` are the fields that must be there and that tell the format from others. `unit` is
    s, ms, ns or date.
    """

    name: str
    kind: str
    summary: str
    prompt: str
    output: str
    requires: tuple[str, ...]
    arrival: str | None = None
    unit: str = "s"
    blocks: str | None = None
    block_tokens: int = 0
    row_id: str | None = None

    def matches(self, kind: str, fields: set[str]) -> bool:
        """Whether a file of this kind with these fields is of this format."""
        return kind == self.kind and fields.issuperset(self.requires)


FLAT_FORMATS: tuple[FlatFormat, ...] = (
    FlatFormat(
        name="azure",
        kind="csv",
        summary="Azure LLM inference traces 2023 and 2024",
        prompt="ContextTokens",
        output="GeneratedTokens",
        requires=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        arrival="TIMESTAMP",
        unit="date",
    ),
    FlatFormat(
        name="apex",
        kind="csv",
        summary="APEX lengths",
        prompt="context_tokens",
        output="generated_tokens",
        requires=("start_time_offset_ns", "context_tokens", "generated_tokens"),
        arrival="start_time_offset_ns",
        unit="ns",
    ),
    FlatFormat(
        name="vidur",
        kind="csv",
        summary="Vidur processed traces (arrived_at is optional)",
        prompt="num_prefill_tokens",
        output="num_decode_tokens",
        requires=("num_prefill_tokens", "num_decode_tokens"),
        arrival="arrived_at",
    ),
    FlatFormat(
        name="burstgpt",
        kind="csv",
        summary="BurstGPT (rows with zero response tokens are failed requests)",
        prompt="Request tokens",
        output="Response tokens",
        requires=("Timestamp", "Request tokens", "Response tokens"),
        arrival="Timestamp",
    ),
    FlatFormat(
        name="bailian",
        kind="jsonl",
        summary="Qwen-Bailian traces (16-token prefix blocks)",
        prompt="input_length",
        output="output_length",
        requires=("chat_id", "timestamp", "input_length", "output_length"),
        arrival="timestamp",
        blocks="hash_ids",
        block_tokens=16,
    ),
    FlatFormat(
        name="mooncake",
        kind="jsonl",
        summary="Mooncake traces (512-token prefix blocks)",
        prompt="input_length",
        output="output_length",
        requires=("timestamp", "input_length", "output_length"),
        arrival="timestamp",
        unit="ms",
        blocks="hash_ids",
        block_tokens=512,
    ),
    FlatFormat(
        name="llmservingsim",
        kind="jsonl",
        summary="LLMServingSim workloads (16-token prefix blocks in hash_ids)",
        prompt="input_toks",
        output="output_toks",
        requires=("input_toks", "output_toks", "arrival_time_ns"),
        arrival="arrival_time_ns",
        unit="ns",
        blocks="hash_ids",
        block_tokens=16,
    ),
    FlatFormat(
        name="vllm",
        kind="jsonl",
        summary="vLLM request logs (wall-clock arrival_time)",
        prompt="input_toks",
        output="output_toks",
        requires=("input_toks", "output_toks", "arrival_time"),
        arrival="arrival_time",
        row_id="request_id",
    ),
)


def read_flat(spec: FlatFormat, path: Path, *, skip_bad: bool, max_rows: int | None) -> Trace:
    """Import a file of a flat format. The earliest arrival becomes time zero.

    DataError names file, line and field; with `skip_bad` bad lines are counted in the trace's
    meta. Rows with zero prompt or output tokens are dropped and counted there in any case.
    """
    rejects = Rejects(skip_bad=skip_bad)
    builder = TraceBuilder()
    records = _csv_records if spec.kind == "csv" else _jsonl_records
    add_row = _row_adder(spec, builder, rejects)
    for number, get in records(spec, path, rejects):
        if max_rows is not None and len(builder) >= max_rows:
            break
        try:
            add_row(get)
        except _BadField as bad:
            remedy = "correct the line or skip bad lines with --skip-bad"
            rejects.bad(
                DataError(bad.message, path=str(path), line=number, field=bad.field, remedy=remedy)
            )
    if not len(builder):
        raise DataError(
            f"no usable rows ({rejects.num_bad} bad, {sum(rejects.dropped.values())} dropped)",
            path=str(path),
            remedy="check the file",
        )
    meta: dict[str, Any] = {"format": spec.name, "source_file": path.name}
    if builder.start_at_zero() > MAX_ARRIVAL_PS:
        raise DataError(
            f"the arrivals span more than {MAX_DAYS} days",
            path=str(path),
            field=spec.arrival,
            remedy="import the first part with --limit",
        )
    return builder.build(
        name=trace_name(path),
        prefix_block_tokens=spec.block_tokens,
        meta=meta | rejects.as_meta(),
    )


Getter = Callable[[str], Any]


class _BadField(Exception):
    def __init__(self, field: str | None, message: str) -> None:
        self.field, self.message = field, message


def _row_adder(
    spec: FlatFormat, builder: TraceBuilder, rejects: Rejects
) -> Callable[[Getter], None]:
    # Arrivals are kept relative to the first row's: wall clocks in picoseconds exceed 64 bits.
    origin: int | None = None
    read_time = date_ps if spec.unit == "date" else partial(scaled_ps, unit=spec.unit)

    def add(get: Getter) -> None:
        nonlocal origin
        prompt = _tokens(spec.prompt, get(spec.prompt))
        output = _tokens(spec.output, get(spec.output))
        if not prompt or not output:
            rejects.drop(ZERO_PROMPT if not prompt else ZERO_OUTPUT)
            return
        time = get(spec.arrival) if spec.arrival else None
        arrival = 0
        if time is not None:
            try:
                arrival = read_time(time)
            except (ValueError, TypeError) as error:
                raise _BadField(spec.arrival, str(error)) from None
        if (time is None) != (origin is None) and len(builder):
            raise _BadField(spec.arrival, "given in some rows and missing in others")
        if time is not None and origin is None:
            origin = arrival
        arrival -= origin or 0
        if abs(arrival) > MAX_ARRIVAL_PS:
            raise _BadField(spec.arrival, f"more than {MAX_DAYS} days from the first row")
        blocks = _blocks(spec, get(spec.blocks), prompt) if spec.blocks else ()
        row_id = get(spec.row_id) if spec.row_id else None
        if row_id is not None and not isinstance(row_id, str):
            raise _BadField(spec.row_id, f"expected a text, got {row_id!r}")
        try:
            builder.add(prompt, output, arrival, blocks, row_id)
        except OverflowError:
            raise _BadField(spec.blocks, "a block id does not fit 64 bits") from None

    return add


def _tokens(field: str, value: Any) -> int:
    if isinstance(value, str):
        text = value.strip()
        # Public CSV files were often written by pandas, which makes 12 into 12.0.
        whole, _, zeros = text.partition(".")
        if whole.isdecimal() and whole.isascii() and not zeros.strip("0") and len(whole) < 20:
            value = int(whole)
    elif isinstance(value, Decimal) and value.is_finite() and value.adjusted() < 20:
        value = int(value) if value == value.to_integral_value() else value
    if value is None:
        raise _BadField(field, "missing")
    if type(value) is not int:
        raise _BadField(field, f"expected a whole number of tokens, got {str(value)[:40]!r}")
    if not 0 <= value <= MAX_TOKENS:
        raise _BadField(field, f"{value} tokens, allowed are 0 to {MAX_TOKENS}")
    return value


def _blocks(spec: FlatFormat, value: Any, prompt: int) -> list[int]:
    if value is None:
        return []
    if type(value) is not list or any(type(block) is not int for block in value):
        raise _BadField(spec.blocks, "expected a list of whole numbers")
    if len(value) and (len(value) - 1) * spec.block_tokens >= prompt:
        raise _BadField(
            spec.blocks,
            f"{len(value)} blocks of {spec.block_tokens} tokens for a prompt of {prompt} tokens",
        )
    return value


def _csv_records(spec: FlatFormat, path: Path, rejects: Rejects) -> Iterator[tuple[int, Getter]]:
    numbers = [0]

    def texts() -> Iterator[str]:
        for number, line in read_lines(path):
            numbers[0] = number
            if isinstance(line, DataError):
                rejects.bad(line)
                continue
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                rejects.bad(_line_error(path, number, "not valid UTF-8"))

    rows = csv.reader(texts())
    columns = [column.strip() for column in next(rows, [])]
    index = {column: i for i, column in enumerate(columns)}
    width = len(columns)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            rejects.bad(_line_error(path, numbers[0], str(error)))
            continue
        if row is None:
            return
        if len(row) != width:
            message = f"{len(row)} columns, the header has {width}"
            rejects.bad(_line_error(path, numbers[0], message))
            continue

        def get(field: str, row: list[str] = row) -> str | None:
            position = index.get(field)
            return None if position is None else row[position]

        yield numbers[0], get


def _jsonl_records(spec: FlatFormat, path: Path, rejects: Rejects) -> Iterator[tuple[int, Getter]]:
    decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
    for number, line in read_lines(path):
        if isinstance(line, DataError):
            rejects.bad(line)
            continue
        try:
            record = decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            rejects.bad(_line_error(path, number, str(error).replace("`", "")))
            continue
        yield number, record.get


def _line_error(path: Path, number: int, message: str) -> DataError:
    return DataError(
        message,
        path=str(path),
        line=number,
        remedy="correct the line or skip bad lines with --skip-bad",
    )
