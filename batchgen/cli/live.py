"""How a batch job stands, for whoever watches: a display on a terminal, lines elsewhere, or JSON.

All of it is made of `batchgen.job.snapshot.Snapshot`s; nothing is measured here. stderr only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from batchgen.cli.common import PLAIN_EVERY_S, say
from batchgen.errors import UserError
from batchgen.job.snapshot import Snapshot
from batchgen.report.text import count, duration, percent

MODES = ("auto", "bar", "plain", "json", "off")
FILL = {"fill": "filling", "steady": "steady", "tail": "tail"}

Watch = Callable[[Snapshot], None]


def mode_of(progress: str, *, quiet: bool, json_events: bool) -> str:
    """One of MODES but "auto". Raises UserError for options that contradict each other."""
    if progress not in MODES:
        raise UserError(f"--progress is '{progress}'", remedy=f"choose one of {', '.join(MODES)}")
    if quiet and (json_events or progress not in ("auto", "off")):
        raise UserError("--quiet shows no progress", remedy="leave it or the other out")
    if json_events and progress not in ("auto", "json"):
        raise UserError(
            f"--json-events and --progress {progress} exclude each other", remedy="leave one out"
        )
    if quiet:
        return "off"
    if json_events:
        return "json"
    if progress == "auto":
        return "bar" if sys.stderr.isatty() else "plain"
    return progress


class Talk:
    """What a command says beside its data: lines, JSON objects with `as_json`, notes only unless
    `quiet`."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet

    def say(self, line: str) -> None:
        """Something that whoever runs it should know."""
        if self.as_json:
            event("note", text=line)
        elif not self.quiet:
            say(line)


def event(kind: str, **facts: Any) -> None:
    """One JSON object on a line of stderr."""
    value = {"event": kind, "at": round(time.time(), 3)} | facts
    print(json.dumps(value, allow_nan=False), file=sys.stderr, flush=True)


@contextmanager
def shown(mode: str, label: str) -> Iterator[Watch | None]:
    """A taker of snapshots that shows them; `mode` is one of MODES but "auto"."""
    if mode == "off":
        yield None
    elif mode == "json":
        yield lambda snapshot: event("progress", **snapshot.as_json())
    elif mode == "plain":
        yield Plain(label)
    else:
        with _display(label) as watch:
            yield watch


class Plain:
    """A line every few seconds, ever fewer of them; none for a short run."""

    def __init__(
        self,
        label: str,
        every_s: float = PLAIN_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._every_s, self._clock = label, every_s, clock
        self._began = clock()
        self._next = self._began + every_s

    def __call__(self, snapshot: Snapshot) -> None:
        now = self._clock()
        if now < self._next:
            return
        # A day makes some hundred lines, not seventeen thousand.
        self._next = now + max(self._every_s, (now - self._began) / 20)
        say(f"{self._label}: {', '.join(text for _, text in parts(snapshot))}")


def parts(one: Snapshot) -> list[tuple[str, str]]:
    """(name, text) of each line of the display."""
    answered = f"{count(one.done + one.failed)}/{count(one.rows)} rows"
    failed = f", {count(one.failed)} failed" if one.failed else ""
    earlier = f", {count(one.earlier)} of them earlier" if one.earlier else ""
    tokens = (
        f"{count(one.output_tokens_per_s)} tokens/s out (mean "
        f"{count(one.mean_output_tokens_per_s)}), {count(one.input_tokens_per_s)} in"
    )
    places = (
        f"{count(one.running)} running, {count(one.waiting)} waiting, KV {percent(one.kv_use)} of "
        f"{count(one.kv_pages_total)} pages"
    )
    time_text = f"{duration(one.elapsed_s)} gone, {left(one)} left ({FILL[one.phase]})"
    found = [
        ("rows", answered + failed + earlier),
        ("tokens", tokens),
        ("sequences", places),
        ("time", time_text),
    ]
    if one.expected is not None:
        found.append(("simulator", beside(one)))
    return found


def left(one: Snapshot) -> str:
    """'3 to 5 min', as far as it is known."""
    if one.left_s is None:
        return "unknown"
    least, most = (duration(round(value, 1)) for value in one.left_s)
    return least if least == most else f"{least} to {most}"


def beside(one: Snapshot) -> str:
    """What the simulator said, beside what is."""
    expected = one.expected
    assert expected is not None
    pace = ""
    if expected.slower is not None:
        word = "slower" if expected.slower >= 1 else "faster"
        pace = f"; {abs(expected.slower - 1):.0%} {word} so far"
    tokens = f"{count(one.output_tokens)} of {count(expected.output_tokens)} tokens by now"
    return f"said {duration(expected.total_s)} in all; {tokens}{pace}"


@contextmanager
def _display(label: str) -> Iterator[Watch]:
    """Lines that are drawn anew, gone in the end."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)

    def drawn(snapshot: Snapshot | None) -> Any:
        title = Text(label, style="bold")
        if snapshot is None:
            return Group(Text.assemble(title, "  reading rows, loading the model"))
        table = Table.grid(padding=(0, 2))
        for name, text in parts(snapshot):
            table.add_row(Text(name, style="dim"), Text(text))
        bar = ProgressBar(
            total=max(snapshot.rows, 1),
            completed=snapshot.done + snapshot.failed,
            width=min(console.width, 60),
        )
        return Group(title, bar, table)

    with Live(drawn(None), console=console, transient=True, auto_refresh=False) as live:
        yield lambda snapshot: live.update(drawn(snapshot), refresh=True)
