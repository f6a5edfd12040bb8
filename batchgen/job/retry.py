"""The requests of rows that failed, as they came: a file of them is an input like any other."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from batchgen.job.drafting import line_id
from batchgen.job.fields import TYPED
from batchgen.job.inputs import filled_lines, read_input
from batchgen.job.jsonl import BadLine, parse_object
from batchgen.job.output import line_of


def failed_requests(path: Path, form: str, failed: Collection[int]) -> Iterator[bytes]:
    """Lines, without their newline, of the rows whose numbers are in `failed`, in input order.

    A row of JSON lines is its line, byte by byte, but for one thing: a short row without an id gets
    the one that it had (`line-N`), so that its answer and its seed stay its own. Rows of other
    forms become objects of their columns. A line that is no JSON is copied as it is, to be mended;
    one that is longer than a line may be has none here, nor has a broken row of another form.
    """
    if form == "jsonl":
        yield from _lines(path, failed)
        return
    for index, (number, value) in enumerate(read_input(path, form, typed=TYPED)):
        if index in failed and isinstance(value, dict):
            yield line_of(_with_id(value, number))


def _lines(path: Path, failed: Collection[int]) -> Iterator[bytes]:
    for index, (number, line) in enumerate(filled_lines(path)):
        if index not in failed or isinstance(line, BadLine):
            continue
        value = parse_object(line)
        if isinstance(value, BadLine) or _with_id(value, number) is value:
            yield line
        else:
            yield json.dumps(_with_id(value, number), ensure_ascii=False).encode()


def _with_id(value: dict[str, Any], number: int) -> dict[str, Any]:
    named = value.get("custom_id", value.get("id")) is not None
    if named or "body" in value or "url" in value or "method" in value:
        return value
    rest = {name: one for name, one in value.items() if name != "custom_id"}
    return {"custom_id": line_id(number)} | rest
