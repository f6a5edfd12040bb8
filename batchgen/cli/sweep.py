"""`batchgen sweep`: a YAML file of policies, layouts, GPUs, device traces, options and seeds; every
combination simulated, on all cores, in one table. Nothing is simulated here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import (
    JSON_SCHEMA,
    MIN_WIDTH_PIPED,
    PLAIN_EVERY_S,
    say,
    users_code,
)
from batchgen.cores import num_cores
from batchgen.errors import DataError, UserError
from batchgen.oneline import escaped
from batchgen.paths import aside, check_new_folder, write_whole

if TYPE_CHECKING:
    from batchgen.report.record import RunRecord
    from batchgen.simjob import SimJob, Simulate
    from batchgen.sweep.spec import Sweep
    from batchgen.trace.table import Trace

app = typer.Typer(add_completion=False, rich_markup_mode=None)

PARQUET, TABLE, PICTURE, JOURNAL = "runs.parquet", "table.md", "sweep.png", "runs.jsonl"
OURS = (PARQUET, TABLE, PICTURE, JOURNAL, "devices")


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(metavar="FILE.yaml", help="What to vary, and what not.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: out/<name of the sweep>.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes; default: one per core.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Forget the runs that are done, and begin anew.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all runs as JSON instead of the table.")
    ] = False,
    progress: Annotated[str, typer.Option(metavar="auto|off", help="Progress on stderr.")] = "auto",
) -> int:
    """Simulate every combination of a file, on all cores; go on where an earlier call ended."""
    from batchgen.sweep.execute import Executor, as_rows
    from batchgen.sweep.journal import Journal
    from batchgen.sweep.pool import Stop
    from batchgen.sweep.read import read_sweep
    from batchgen.trace.schema import load

    if progress not in ("auto", "off"):
        raise UserError(f"--progress is '{progress}'", remedy="choose one of auto, off")
    with users_code():
        asked = read_sweep(file)
    folder = out if out is not None else Path("out") / asked.name
    _check_folder(folder)
    trace = load(asked.fixed["trace"], max_rows=asked.fixed.get("limit"))
    simulate = _without_prints(import_module("batchgen.sim.run").simulate)
    executor = Executor(asked, trace, folder, simulate, _searching(simulate))
    _check_devices(executor)
    _prepare(folder, force)
    tell = _Progress(progress == "auto")
    with (
        Journal(folder) as journal,
        Stop(
            lambda: say("ending: runs in progress are finished first; once more ends at once")
        ) as stop,
    ):
        results = executor.carry_out(journal, workers or num_cores(), stop, tell)
        if stop:
            left = sum(result is None for result in results)
            say(f"{left} of {len(results)} runs are left; the same command goes on")
            raise KeyboardInterrupt
    rows = as_rows(executor.runs, results)
    _write(rows, asked, folder)
    _show(rows, asked, as_json)
    return 1 if any(row["error"] or row.get("failed_rows") for row in rows) else 0


def _check_folder(folder: Path) -> None:
    """Raises UserError unless it is a sweep's, or empty, or not there yet."""
    check_new_folder(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / JOURNAL).is_file():
        raise UserError(f"{folder} is not empty and no sweep's", remedy="give another --out")


def _prepare(folder: Path, force: bool) -> None:
    """Makes the folder; with `force` what an earlier sweep left in it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    if force:
        for name in OURS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _without_prints(simulate: Simulate) -> Simulate:
    def quiet(job: SimJob, **more: Any) -> RunRecord:
        with users_code():
            return simulate(job, **more)

    return quiet


def _searching(simulate: Simulate) -> Simulate:
    """Runs a job in its best layout."""

    def run(
        job: SimJob, *, progress: Any = None, trace: Trace | None = None, **_: Any
    ) -> RunRecord:
        from batchgen.layout_search import search

        assert trace is not None
        return search(job, simulate, trace, progress=progress)

    return run


def _check_devices(executor: Any) -> None:
    """Device traces that cannot be read are a mistake of the file, not of one run. Nothing is left
    of them: a sweep that is refused makes no folder."""
    with aside("devices") as folder:
        _read_devices(executor, folder)


def _read_devices(executor: Any, folder: Path) -> None:
    from batchgen.sweep.troubles import device_file

    load_faults: Callable[[str, int], Any] = import_module("batchgen.sim.faults").load_faults
    seen = set()
    for run in executor.runs:
        path = device_file(run, folder)
        if path is None or (path, run.gpus) in seen:
            continue
        seen.add((path, run.gpus))
        try:
            load_faults(path, run.gpus)
        except DataError as error:
            if not run.devices.places or error.line is None:
                raise
            raise DataError(
                error.message.rpartition("': " if error.field else ": ")[2],
                path=executor.sweep.path,
                line=run.devices.places[error.line - 1],
                field=f"devices.{run.devices.name}" + f".{error.field}" * bool(error.field),
                remedy=error.remedy,
            ) from None


class _Progress:
    """A line on stderr every few seconds."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.began = self.last = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.first is None:
            self.first = done
            if done and self.shown:
                say(f"{done:,} of {total:,} runs are done already")
        clock = time.monotonic()
        if not self.shown or clock - self.last < PLAIN_EVERY_S:
            return
        self.last = clock
        from batchgen.report.text import duration

        pace = (clock - self.began) / max(done - self.first, 1)
        say(f"{done:,}/{total:,} runs, ETA {duration(pace * (total - done))}")


def _title(asked: Sweep, rows: list[dict[str, Any]]) -> str:
    def one(key: str) -> str:
        found = list(dict.fromkeys(str(row[key]) for row in rows if not row["error"]))
        return found[0] if len(found) == 1 else "several"

    load = f", {one('rows')} rows" if one("rows") != "several" else ""
    seeds = len(asked.seeds)
    return (
        f"{asked.name}: {one('model')} on {one('num_gpus')} x {one('gpu')}, layout "
        f"{one('layout')}{load}, {seeds} seed{'s' * (seeds > 1)}"
    )


def _write(rows: list[dict[str, Any]], asked: Sweep, folder: Path) -> None:
    from batchgen.sweep.picture import draw
    from batchgen.sweep.table import cells, markdown, write_parquet

    found = cells(rows)
    write_parquet(rows, folder / PARQUET)
    write_whole(folder / TABLE, markdown(found).encode())
    drawn = draw(found, _title(asked, rows), folder / PICTURE)
    names = [PARQUET, TABLE] + [PICTURE] * (drawn is not None)
    say(f"wrote {', '.join(str(folder / name) for name in names)}")


def _show(rows: list[dict[str, Any]], asked: Sweep, as_json: bool) -> None:
    if as_json:
        document = {"schema": JSON_SCHEMA, "sweep": asked.name, "runs": rows}
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    import sys

    from rich.console import Console

    from batchgen.sweep.table import cells, rich_table, trouble_lines

    found = cells(rows)
    width = None if sys.stdout.isatty() else MIN_WIDTH_PIPED
    Console(width=width, highlight=False).print(rich_table(found, _title(asked, rows)))
    for line in trouble_lines(found):
        print(escaped(f"- {line}"))
