"""`batchgen bench silicon`: predicted inter-token times of real engines against measured ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import tell_result
from batchgen.paths import check_input, check_result

if TYPE_CHECKING:
    from batchgen.cost.silicon.assess import Assessment, Errors
    from batchgen.cost.silicon.clean import Cleaned

SHOWN = ("all", "GPU", "engine", "model")  # tables that are printed; the JSON has all


def silicon(
    data: Annotated[
        Path | None,
        typer.Option(
            help="CSV like aiconfigurator's silicon sample, gzipped or not; default: the shipped."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Errors of inter-token times of vLLM, SGLang and TensorRT-LLM; exit code 1 when a bar is
    missed."""
    if out is not None:
        check_result(out, force=force)
    if data is not None:
        check_input("data", data, remedy="check --data")
    told, show, missed = against_silicon(data)
    return tell_result(told, show, missed, out=out, as_json=as_json)


def against_silicon(
    data: Path | None = None,
) -> tuple[dict[str, Any], Callable[[], None], list[str]]:
    """The JSON, what prints its tables, and a line for each bar that is missed."""
    from batchgen.cost.silicon.assess import BARS
    from batchgen.cost.silicon.report import document, measure
    from batchgen.cost.silicon.rows import SHIPPED

    num_rows, cleaned, found = measure(SHIPPED if data is None else data)
    told = document(num_rows, cleaned, found)
    overall = found.rows[0].errors
    missed = [
        f"{kind}: {_both(overall[kind])} % is above its bar, "
        f"{_pair(BARS[kind].median, BARS[kind].p90)} %"
        for kind in found.missed
    ]
    guessed = told["gpus_without_tables"]
    return told, lambda: _print(num_rows, cleaned, found, guessed), missed


def _print(num_rows: int, cleaned: Cleaned, found: Assessment, guessed: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from batchgen.cost.silicon.assess import BARS, KINDS

    console = Console(width=120, highlight=False)
    reasons = Table(title=f"Rows left out, of {num_rows:,}", title_justify="left")
    reasons.add_column("reason")
    reasons.add_column("rows", justify="right")
    for reason, count in cleaned.left_out.items():
        reasons.add_row(reason, f"{count:,}")
    console.print(reasons)
    launches = ", ".join(f"{name} {1e6 * value:.1f}" for name, value in found.launch_s.items())
    console.print(f"Launch of an element-wise kernel, us: {launches}")
    if guessed:
        console.print(f"Kernels by those of another GPU: {', '.join(guessed)}")
    table = Table(
        title="Inter-token time: median / 90th percentile of |predicted / measured - 1|, %",
        title_justify="left",
    )
    for name in ("by", ""):
        table.add_column(name, no_wrap=True)
    for name in ("rows", *KINDS, "bias"):
        table.add_column(name, justify="right")
    for row in found.rows:
        if row.table in SHOWN:
            cells = [_both(row.errors[kind]) for kind in KINDS]
            bias = f"{100 * row.errors['physics'].bias:+.1f}"
            by = "" if row.table == "all" else row.table
            table.add_row(by, row.name, f"{row.count:,}", *cells, bias)
    bars = [_pair(BARS[kind].median, BARS[kind].p90) if kind in BARS else "" for kind in KINDS]
    table.add_section()
    table.add_row("", "bar", "", *bars, "")
    console.print(table)


def _both(errors: Errors) -> str:
    return _pair(errors.median, errors.p90)


def _pair(median: float, p90: float) -> str:
    return f"{100 * median:.1f} / {100 * p90:.1f}"
