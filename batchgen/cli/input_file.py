"""`batchgen validate input`: a file of rows checked without a model, and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from batchgen.cli.common import say
from batchgen.cli.input_options import Chat, InputFormat, PromptColumn, PromptTemplate, Strict
from batchgen.errors import UserError
from batchgen.oneline import escaped
from batchgen.report.text import count


def check_input_file(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Rows; - is standard input.")],
    input_format: InputFormat = "auto",
    prompt_column: PromptColumn = None,
    prompt_template: PromptTemplate = None,
    chat: Chat = False,
    strict: Strict = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first rows of the input.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Structure, options and ids of all rows of a file. Exit code 0 all can run as far as one can
    tell without a model, 1 some cannot, 2 none can."""
    from batchgen.cli.spooling import spooled
    from batchgen.job.checking import check_rows
    from batchgen.job.shape import make_shape

    shape = make_shape(prompt_column, prompt_template, chat=chat, system=None)
    with spooled(path) as file:
        found = check_rows(file, form=input_format, shape=shape, strict=strict, limit=limit)
    if not found.num_rows:
        raise UserError(f"{path} holds no rows", remedy="put one JSON object on each line")
    bad = found.bad.counts.total()
    if as_json:
        document = {
            "schema": 1,
            "input": str(path),
            "rows": found.num_rows,
            "bytes": found.num_bytes,
            "sha256": found.sha256,
            "bad_rows": bad,
            "bad_by_code": found.bad.as_json(),
            "unknown_fields": dict(found.unknown),
        }
        print(json.dumps(document, indent=2))
    else:
        print(escaped(f"{path}: {count(found.num_rows)} rows, {count(found.num_rows - bad)} good"))
        print_bad(found.bad.as_json(), found.unknown)
    if bad == found.num_rows:
        say(f"error: no row of {path} can run; mend the rows, whose errors are counted above")
        return 2
    return int(bad > 0)


def print_bad(by_code: Mapping[str, Any], unknown: Mapping[str, int]) -> None:
    """What is wrong, and the first lines of each kind; fields that nobody knows."""
    for code, some in by_code.items():
        print(f"  {code}: {count(some['rows'])} rows")
        for row in some["first"]:
            print(escaped(f"    line {row['line']}: {row['message']}"))
    for name, number in unknown.items():
        print(escaped(f"  field '{name:.60}' of {count(number)} rows is not known and is ignored"))
