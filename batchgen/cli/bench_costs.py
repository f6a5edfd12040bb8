"""`batchgen bench costs`: how far the costs of kernels are from measured ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import say, tell_result
from batchgen.errors import UserError
from batchgen.paths import check_result, kind_of

if TYPE_CHECKING:
    from batchgen.cost.operators.assess import Row
    from batchgen.cost.operators.tables import Dropped

FULL = "fits to the tables, each by what it has not seen"
SHIPPED = "the fits of this project, on shapes that they have not seen"


def costs(
    tables: Annotated[
        Path | None,
        typer.Option(
            help="Folder of aiconfigurator's tables (h100_sxm/..., ...); default: what is shipped."
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Folder for the two files that the project ships; needs --tables."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Errors of kernels' costs on shapes and GPUs left out; exit code 1 when a bar is missed."""
    if out is not None:
        check_result(out, force=force)
    if write is not None:
        if tables is None:
            raise UserError("--write has nothing to fit", remedy="add --tables DIR")
        if kind_of(write) != "folder":
            raise UserError(f"{write} is no folder", remedy="make it first")
    if tables is not None and kind_of(tables) != "folder":
        raise UserError(f"tables {tables} is no folder", remedy="check --tables")
    rows, dropped, what = _shipped() if tables is None else _full(tables, write)
    from batchgen.cost.operators.assess import BARS

    missed = [
        row.operator
        for row in rows
        if (row.gpu, row.left_out) == ("all", "shapes") and not BARS[row.operator].met(row.errors)
    ]
    document = {
        "schema": 1,
        "benchmark": "bench costs",
        "what": what,
        "bars": {name: _finite(asdict(bar)) for name, bar in BARS.items()},
        "rows": [_finite(asdict(row) | {"errors": _finite(asdict(row.errors))}) for row in rows],
        "dropped": [asdict(one) for one in dropped],
        "missed": missed,
    }
    lines = [f"{name}: above its bar" for name in missed]

    def show() -> None:
        _print(rows, what)
        _print_dropped(dropped)

    return tell_result(document, show, lines, out=out, as_json=as_json)


def _full(tables: Path, write: Path | None) -> tuple[list[Row], list[Dropped], str]:
    from batchgen.cost.operators.assess import assess
    from batchgen.cost.operators.ship import ship
    from batchgen.cost.operators.tables import read_tables

    found, dropped = read_tables(tables)
    if write is not None:
        for path in ship(found, write, say):
            say(f"wrote {path}")
    return list(assess(found, say)), dropped, FULL


def _shipped() -> tuple[list[Row], list[Dropped], str]:
    from batchgen.cost.operators.assess import Pair, Row, totals
    from batchgen.cost.operators.fitted import errors
    from batchgen.cost.operators.sample import load as load_sample
    from batchgen.cost.operators.store import load as load_fitted
    from batchgen.hardware import load_gpu

    fitted, _ = load_fitted()
    rows: list[Row] = []
    together: dict[tuple[str, str], list[Pair]] = {}
    for points in load_sample():
        one = fitted[points.operator, points.gpu, points.variant]
        pair = one.seconds(load_gpu(points.gpu), points.columns), points.seconds
        together.setdefault((points.operator, "shapes"), []).append(pair)
        rows.append(
            Row(
                operator=points.operator,
                gpu=points.gpu,
                variant=points.variant,
                left_out="shapes",
                errors=errors(*pair),
            )
        )
    return rows + totals(together), [], SHIPPED


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _print(rows: Sequence[Row], what: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from batchgen.cost.operators.assess import BARS

    table = Table(title=f"Errors of {what}", title_justify="left")
    for name in ("kernel", "GPU", "dtype", "left out"):
        table.add_column(name, no_wrap=True)
    for name in ("points >= 10 us", "median", "90th", "bias", "shorter", "median", "bar"):
        table.add_column(name, justify="right")
    for row in rows:
        found, bar = row.errors, BARS[row.operator]
        barred = (row.gpu, row.left_out) == ("all", "shapes")
        table.add_row(
            row.operator.replace("_", " "),
            row.gpu,
            row.variant,
            row.left_out,
            f"{found.count:,}",
            _percent(found.median),
            _percent(found.p90),
            _percent(found.bias, signed=True),
            f"{found.short_count:,}",
            _percent(found.short_median),
            f"{_percent(bar.median)} / {_percent(bar.p90)}" if barred else "",
        )
    Console(width=150, highlight=False).print(table)


def _print_dropped(dropped: Sequence[Dropped]) -> None:
    """Points of the tables that were not taken, by operator and reason."""
    if not dropped:
        return
    from rich.console import Console
    from rich.table import Table

    together: dict[tuple[str, str], int] = {}
    where: dict[tuple[str, str], list[str]] = {}
    for one in dropped:
        key = one.operator, one.reason
        together[key] = together.get(key, 0) + one.points
        place = f"{one.gpu} {one.variant}".strip()
        if place not in where.setdefault(key, []):
            where[key].append(place)
    table = Table(title="Points of the tables that were left out", title_justify="left")
    for name in ("kernel", "why", "of"):
        table.add_column(name)
    table.add_column("points", justify="right")
    for (operator, reason), points in sorted(together.items()):
        places = ", ".join(where[operator, reason])
        table.add_row(operator.replace("_", " "), reason, places, f"{points:,}")
    Console(width=150, highlight=False).print(table)


def _percent(value: float, *, signed: bool = False) -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:+.1f}%" if signed else f"{100 * value:.1f}%"
