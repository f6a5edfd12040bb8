"""`batchgen report`: tables, figures and timelines again, from run directories. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.common import print_runs_json, print_table, say
from batchgen.errors import BatchgenError, UserError
from batchgen.oneline import named
from batchgen.paths import check_result

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Run directories, or folders that hold some."),
    ],
    plots: Annotated[
        Path | None, typer.Option(help="Draw here: one run's figures, or the comparison.")
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(help="Write one run as Chrome trace events (.json or .json.gz)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a timeline that exists.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
) -> int:
    """Tables, figures and timelines of finished runs."""
    from batchgen.report.metrics import summary
    from batchgen.report.rundir import load_run

    folders = _expand(directories)
    with _whole(folders):
        records = [load_run(path) for path in folders]
        summaries = [summary(record) for record in records]
    if timeline is not None:
        if len(records) != 1:
            raise UserError(f"--timeline shows one run, got {len(records)}", remedy="name one")
        check_result(timeline, force=force)
        from batchgen.report.timeline import write_timeline

        with _whole(folders):
            count = write_timeline(records[0], timeline)
        say(f"wrote {timeline} ({count:,} events)")
    if plots is not None:
        from batchgen.report.plots import plot_comparison, plot_run

        if plots.exists() and not plots.is_dir():
            raise UserError(f"--plots {plots} is a file", remedy="give a folder")
        plots.mkdir(parents=True, exist_ok=True)
        single = len(records) == 1
        with _whole(folders):
            files = plot_run(records[0], plots) if single else plot_comparison(records, plots)
        for path in files:
            say(f"wrote {path}")
    with _whole(folders):
        if as_json:
            print_runs_json(summaries)
        else:
            print_table(summaries)
    return 1 if any(s["failed_rows"] for s in summaries) else 0


@contextmanager
def _whole(folders: list[Path]) -> Iterator[None]:
    """What is made of run directories: anything may be in the files of a damaged one."""
    try:
        yield
    except (BatchgenError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        names = ", ".join(str(path) for path in folders)
        raise UserError(
            f"{names}: the files of the run make no sense ({named(error, 120)})",
            remedy="make the run again",
        ) from error


def _expand(directories: list[Path]) -> list[Path]:
    """Run directories among the arguments; a folder stands for the run directories inside it."""
    found: list[Path] = []
    for path in directories:
        if not path.is_dir():
            raise UserError(f"{path} is not a folder", remedy="give a run directory")
        inside = sorted(p.parent for p in path.glob("*/run.json"))
        if (path / "run.json").is_file():
            found.append(path)
        elif inside:
            found.extend(inside)
        else:
            raise UserError(
                f"{path} holds no run directory (no run.json)",
                remedy="give a folder written by 'batchgen sim --out' or 'batchgen exec --out'",
            )
    return found
