"""The part of `batchgen bench published` on migration and on the work on long tails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from batchgen.cli.common import say
from batchgen.simjob import SimJob, Simulate

if TYPE_CHECKING:
    from batchgen.catalog.mitigation import Comparison, Found, Source
    from batchgen.trace.table import Trace

Chosen = list[tuple[str, "Comparison"]]


def chosen(sources: Mapping[str, Source], only: str | None) -> Chosen:
    """(source, comparison) of those whose source, load or settings hold this text; None: all."""
    return [
        (name, one)
        for name, source in sources.items()
        for one in source.comparisons
        if only is None or only in f"{name} {one.load} {one.before} {one.after}"
    ]


def measured(
    sources: Mapping[str, Source], wanted: Chosen, folder: Path, *, draws: int
) -> Iterator[Found]:
    """Every comparison, simulated with so many draws of the lengths; each setting of a load once.
    seconds of rounds have no failed rows: one that fails has no end."""
    from batchgen.catalog.mitigation import Found
    from batchgen.catalog.tail_batching import seconds

    runs = _Runs(sources, folder)
    for name, one in wanted:
        times: list[tuple[float, float]] = []
        failed = 0
        for seed in range(draws):
            if one.rounds is not None:
                ends = partial(runs.ends, name, one)
                times.append(seconds(runs.rows(name, one.load, seed), one.rounds, ends))
                say(f"{name}, {one.load}, draw {seed}, {one.after}")
                continue
            before, after = (runs.of(name, one.load, how, seed) for how in (one.before, one.after))
            failed += int(before["failed_rows"]) + int(after["failed_rows"])
            times.append((float(before["bct_s"]), float(after["bct_s"])))
        yield Found(
            source=name,
            comparison=one,
            before_s=tuple(before_s for before_s, _ in times),
            after_s=tuple(after_s for _, after_s in times),
            failed_rows=failed,
        )


class _Runs:
    """Simulations of loads under settings, each done once."""

    def __init__(self, sources: Mapping[str, Source], folder: Path) -> None:
        self._sources, self._folder = sources, folder
        self._simulate = cast(Simulate, import_module("batchgen.sim.run").simulate)
        self._known: dict[tuple[str, str, str, int], dict[str, Any]] = {}

    def of(self, name: str, rollout: str, how: str, seed: int) -> dict[str, Any]:
        """The summary of a load under a setting."""
        from batchgen.report.metrics import summary

        key = (name, rollout, how, seed)
        if key not in self._known:
            found = summary(self._simulate(self._job(name, rollout, how, seed), part=True))
            say(f"{name}, {rollout}, draw {seed}, {how}: {found['bct_s']:.0f} s")
            self._known[key] = found
        return self._known[key]

    def rows(self, name: str, rollout: str, seed: int) -> Trace:
        from batchgen.trace.schema import load

        return load(str(trace_of(self._sources, name, rollout, seed, self._folder)))

    def ends(self, name: str, one: Comparison, rows: Trace) -> Any:
        """When each of some rows ends, under the setting before."""
        job = self._job(name, one.load, one.before, 0)
        return self._simulate(job, trace=rows, part=True).rows["end_ps"]

    def _job(self, name: str, rollout: str, how: str, seed: int) -> SimJob:
        from batchgen.catalog.mitigation import job_of

        source = self._sources[name]
        path = trace_of(self._sources, name, rollout, seed, self._folder)
        return job_of(source.loads[rollout], source.settings[how], path)


def trace_of(
    sources: Mapping[str, Source], name: str, rollout: str, seed: int, folder: Path
) -> Path:
    """The file of a load's rows, made once."""
    from batchgen.catalog.mitigation import write_trace

    path = folder / f"{name}-{re.sub('[^a-z0-9.]+', '-', rollout)}-{seed}.jsonl"
    return write_trace(sources[name].loads[rollout], path, seed=seed)


def commands(sources: Mapping[str, Source], wanted: Chosen, folder: Path) -> Iterator[str]:
    """Writes the traces of the first draw; the command of each load under each setting, but for
    those whose rounds depend on each other."""
    from batchgen.catalog.mitigation import job_of
    from batchgen.simcommand import command

    settings = {
        (name, one.load, how): None
        for name, one in wanted
        if one.rounds is None
        for how in (one.before, one.after)
    }
    for name, rollout, how in settings:
        source = sources[name]
        path = trace_of(sources, name, rollout, 0, folder)
        yield command(job_of(source.loads[rollout], source.settings[how], path))


def document(sources: Mapping[str, Source], found: Sequence[Found]) -> dict[str, Any]:
    """The section of the JSON."""
    return {
        "comparisons": [
            {"source": one.source}
            | msgspec.to_builtins(one.comparison)
            | {
                "before_s": one.before_s,
                "after_s": one.after_s,
                "simulated": one.ratio,
                "draws": one.ratios,
                "error": one.error,
                "passes": one.passes,
            }
            for one in found
        ],
        "sources": {
            name: {
                key: msgspec.to_builtins(getattr(source, key))
                for key in ("source", "about", "assumed", "changed", "left_out")
            }
            for name, source in sources.items()
        },
    }


def show(sources: Mapping[str, Source], found: Sequence[Found]) -> None:
    """The table, and what is not in it."""
    from rich.console import Console
    from rich.table import Table

    from batchgen.catalog.mitigation import BAR, published_text

    console = Console(width=120, highlight=False)
    table = Table(
        title=f"Migration and tail mitigation: time before over time after, bar {BAR:.0%}",
        caption="!: beyond its bar" if any(not one.passes for one in found) else None,
        caption_justify="left",
        title_justify="left",
    )
    for name in ("source", "load", "before", "after"):
        table.add_column(name)
    for name in ("published", "simulated", "draws", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        case = one.comparison
        table.add_row(
            one.source,
            case.load,
            case.before,
            case.after,
            published_text(case),
            f"{one.ratio:.2f} x" + ("" if one.passes else " !"),
            f"{min(one.ratios):.2f} to {max(one.ratios):.2f}",
            f"{100 * one.error:+.0f} %",
        )
    console.print(table)
    console.print("Published, and not simulated:")
    for name, source in sources.items():
        for left in source.left_out:
            console.print(f"  {name}: {left.what}: {left.why}")
