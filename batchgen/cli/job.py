"""`batchgen job`: look at a batch job while it runs, after it stopped, or after it ended. It reads,
from another process, and changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from batchgen.cli.live import parts
from batchgen.errors import UserError
from batchgen.job.looking import Standing, lines_of, look_at
from batchgen.oneline import escaped
from batchgen.report.text import count

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

WHERE = "The job's folder (OUTPUT.job), or its output."


@app.callback()
def _before_any() -> None:
    """Look at batch jobs that run, were stopped, or are done."""


@app.command()
def status(
    where: Annotated[Path, typer.Argument(metavar="DIR|OUTPUT", help=WHERE)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """How a job stands: exit code 0 done, 1 done with error rows, 3 not done (it runs or can go
    on)."""
    found = look_at(where)
    if as_json:
        print(json.dumps(_as_object(found), indent=2, allow_nan=False))
    else:
        _print(found)
    if found.state != "done":
        return 3
    return 1 if found.failed else 0


@app.command()
def results(
    where: Annotated[Path, typer.Argument(metavar="DIR|OUTPUT", help=WHERE)],
    order: Annotated[
        str, typer.Option(metavar="input|completion", help="Order of the answers.")
    ] = "input",
    only: Annotated[
        str, typer.Option(metavar="all|done|failed", help="Which of the rows that have an answer.")
    ] = "all",
) -> int:
    """Print the answers so far, one output line each: all of a moment, while the job goes on."""
    if order not in ("input", "completion"):
        raise UserError(f"--order is '{order}'", remedy="choose one of input, completion")
    if only not in ("all", "done", "failed"):
        raise UserError(f"--only is '{only}'", remedy="choose one of all, done, failed")
    sys.stdout.flush()
    out: Any = getattr(sys.stdout, "buffer", None)
    for line, code in lines_of(where, order):
        if only != "all" and bool(code) != (only == "failed"):
            continue
        if out is None:  # somebody has put another stream in the place of standard output
            print(line.decode("utf-8"))
        else:
            out.write(line + b"\n")
    if out is not None:
        out.flush()
    return 0


def _as_object(found: Standing) -> dict[str, Any]:
    return {
        "schema": 1,
        "state": found.state,
        "owner": found.owner or None,
        "rows": found.rows,
        "answered": found.done + found.failed,
        "done": found.done,
        "failed": found.failed,
        "failed_by_code": {code: n for code, n in found.by_code.items() if code},
        "attempts": found.attempts,
        "created": found.created,
        "age_s": None if found.age_s is None else round(found.age_s, 1),
        "snapshot": None if found.snapshot is None else found.snapshot.as_json(),
    }


def _print(found: Standing) -> None:
    words = {
        "running": "runs",
        "stopped": "was stopped and can go on",
        "killed": "was killed and can go on",
        "done": "is done",
    }
    owner = f" in {found.owner}" if found.owner else ""
    print(escaped(f"{found.where}: {words[found.state]}{owner}"))
    of = "" if found.rows is None else f" of {count(found.rows)}"
    answered = count(found.done + found.failed)
    print(f"rows: {answered}{of} answered, {count(found.failed)} of them failed")
    for code, number in found.by_code.items():
        if code:
            print(escaped(f"  {code}: {count(number)}"))
    if found.snapshot is not None and found.state != "done":
        age = "" if found.age_s is None else f", {found.age_s:,.0f} s ago"
        print(f"as its process last said{age}:")
        for name, text in parts(found.snapshot)[1:]:
            print(f"  {name}: {text}")
    if found.state in ("stopped", "killed"):
        print("go on by the command that began it, with --resume always")
