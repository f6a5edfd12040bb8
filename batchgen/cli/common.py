"""What several subcommands share: option parsing, JSON on stdout, talk and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from batchgen.cli.unraisable import quiet_bodies
from batchgen.errors import UserError
from batchgen.oneline import escaped
from batchgen.paths import write_whole
from batchgen.simjob import Progress

JSON_SCHEMA = 1
PLAIN_EVERY_S = 5.0
MIN_WIDTH_PIPED = 160  # a table in a file should not be folded to 80 columns


def parse_overrides(items: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`part.option=value` texts as (name, value) pairs, in order. Raises UserError."""
    pairs = []
    for item in items:
        name, equals, value = item.partition("=")
        part, dot, option = name.strip().partition(".")
        if not (equals and dot and part and option):
            raise UserError(
                f"--set '{item}' is not of the form part.option=value",
                remedy="for instance --set batching.max_tokens=4096",
            )
        pairs.append((f"{part}.{option}", value.strip()))
    return tuple(pairs)


def parse_names(flag: str, text: str) -> tuple[str, ...]:
    """A comma-separated list of distinct names. Raises UserError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(f"{flag} names nothing", remedy=f"for instance {flag} vllm,batchgen")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{flag} names '{twice[0]}' twice", remedy="name each once")
    return tuple(names)


def say(line: str) -> None:
    """One line of talk on stderr. Where that is full the work goes on without it."""
    try:
        print(escaped(line), file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


@contextmanager
def users_code() -> Iterator[None]:
    """While code of users runs: what it prints goes to stderr, stdout is for tables and JSON."""
    quiet_bodies()
    with redirect_stdout(sys.stderr):
        yield


def print_runs_json(summaries: Sequence[Mapping[str, Any]]) -> None:
    """`{"schema": 1, "runs": [...]}` on stdout and nothing else."""
    document = {"schema": JSON_SCHEMA, "runs": list(summaries)}
    print(json.dumps(document, indent=2, allow_nan=False))


def print_table(summaries: Sequence[Mapping[str, Any]]) -> None:
    """The table and its 'why' lines on stdout."""
    from rich.console import Console

    from batchgen.report.tables import report

    piped = not sys.stdout.isatty()
    console = Console(width=MIN_WIDTH_PIPED if piped else None, highlight=False)
    console.print(report(summaries))


@contextmanager
def progress_bar(label: str, mode: str) -> Iterator[Progress | None]:
    """A callback that shows progress on stderr: a bar on a terminal, else a line now and then.

    mode "off": None. The bar shows rows, the simulated time, rate and the time that remains.
    """
    if mode not in ("auto", "off"):
        raise UserError(f"--progress is '{mode}'", remedy="choose one of auto, off")
    if mode == "off":
        yield None
    elif sys.stderr.isatty():
        with _bar(label) as callback:
            yield callback
    else:
        yield PlainProgress(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    # What is left of the line beside the text, which the numbers below keep under 70 columns.
    width = min(max(console.width - len(label) - 72, 6), 40)
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=width),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=True,
        refresh_per_second=8,
    )
    task = bar.add_task(label, total=None, status="loading")
    started = time.monotonic()
    last = started - 1.0

    def callback(now_ps: int, rows_done: int, rows_total: int) -> None:
        nonlocal last
        clock = time.monotonic()
        # Redrawing costs more than an event of a run; the terminal sees eight frames a second.
        if clock - last < 0.1 and rows_done < rows_total:
            return
        last = clock
        status = _status(now_ps, rows_done, rows_total, clock - started)
        bar.update(task, completed=rows_done, total=rows_total, status=status)

    with bar:
        yield callback


def _status(now_ps: int, rows_done: int, rows_total: int, elapsed_s: float) -> str:
    from batchgen.report.text import duration

    rate = rows_done / max(elapsed_s, 1e-3)
    eta = duration((rows_total - rows_done) / rate) if rate else "unknown"
    return (
        f"{rows_done:,}/{rows_total:,} rows, {duration(now_ps / 1e12)} simulated, "
        f"{rate:,.0f} rows/s, ETA {eta}"
    )


class PlainProgress:
    """Progress for logs: one line on stderr every few seconds, none for a short run."""

    def __init__(self, label: str, every_s: float = PLAIN_EVERY_S) -> None:
        self.label = label
        self.every_s = every_s
        self.started = self.last = time.monotonic()

    def __call__(self, now_ps: int, rows_done: int, rows_total: int) -> None:
        clock = time.monotonic()
        if clock - self.last < self.every_s:
            return
        self.last = clock
        status = _status(now_ps, rows_done, rows_total, clock - self.started)
        say(f"{self.label}: {status}")


def tell_result(
    document: Mapping[str, Any],
    show: Callable[[], object],
    missed: Sequence[str],
    *,
    out: Path | None,
    as_json: bool,
) -> int:
    """Ends a bench: JSON to `out`, JSON or tables on stdout, a line for each missed bar on stderr.
    Returns the exit code."""
    text = json.dumps(document, indent=1, allow_nan=False)
    if out is not None:
        write_whole(out, f"{text}\n".encode())
    if as_json:
        print(text)
    else:
        show()
    for line in missed:
        say(f"missed: {line}")
    return 1 if missed else 0
