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
from batchgen.simjob import Simulate

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
    sources: Mapping[str, Source], wanted: Chosen, folder: Path, *, seed: int = 0
) -> Iterator[Found]:
    """Every comparison, simulated; each setting of a load once. seed: of the lengths."""
    from batchgen.catalog.mitigation import Found, job_of, write_trace
    from batchgen.catalog.tail_batching import seconds
    from batchgen.report.metrics import summary
    from batchgen.trace.schema import load

    simulate = cast(Simulate, import_module("batchgen.sim.run").simulate)
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    traces: dict[tuple[str, str], Path] = {}

    def trace_of(name: str, rollout: str) -> Path:
        if (name, rollout) not in traces:
            path = folder / f"{name}-{len(traces)}.jsonl"
            traces[name, rollout] = write_trace(sources[name].loads[rollout], path, seed=seed)
        return traces[name, rollout]

    def run(name: str, rollout: str, setting: str) -> dict[str, Any]:
        source, key = sources[name], (name, rollout, setting)
        if key not in known:
            job = job_of(source.loads[rollout], source.settings[setting], trace_of(name, rollout))
            known[key] = summary(simulate(job, part=True))
            say(f"{name}, {rollout}, {setting}: {known[key]['bct_s']:.0f} s")
        return known[key]

    def ends(name: str, one: Comparison, rows: Trace) -> Any:
        source = sources[name]
        job = job_of(source.loads[one.load], source.settings[one.before], trace_of(name, one.load))
        return simulate(job, trace=rows, part=True).rows["end_ps"]

    for name, one in wanted:
        if one.rounds is not None:
            rows = load(str(trace_of(name, one.load)))
            before_s, after_s = seconds(rows, one.rounds, partial(ends, name, one))
            say(f"{name}, {one.load}, {one.after}")
            yield Found(source=name, comparison=one, before_s=before_s, after_s=after_s)
            continue
        before, after = run(name, one.load, one.before), run(name, one.load, one.after)
        yield Found(
            source=name,
            comparison=one,
            before_s=float(before["bct_s"]),
            after_s=float(after["bct_s"]),
            failed_rows=int(before["failed_rows"]) + int(after["failed_rows"]),
        )


def commands(sources: Mapping[str, Source], wanted: Chosen, folder: Path) -> Iterator[str]:
    """Writes the traces; the command of each load under each setting, but for those whose rounds
    depend on each other."""
    from batchgen.catalog.mitigation import command_of, write_trace

    done: set[tuple[str, str, str]] = set()
    traces: dict[tuple[str, str], Path] = {}
    for name, one in wanted:
        if one.rounds is not None:
            continue
        rollout = sources[name].loads[one.load]
        if (name, one.load) not in traces:
            path = folder / f"{name}-{re.sub('[^a-z0-9.]+', '-', one.load)}.jsonl"
            traces[name, one.load] = write_trace(rollout, path)
        for setting in (one.before, one.after):
            if (name, one.load, setting) not in done:
                done.add((name, one.load, setting))
                yield command_of(rollout, sources[name].settings[setting], traces[name, one.load])


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
        title=f"Migration and tail mitigation: time of one over that of the other, bar {BAR:.0%}",
        title_justify="left",
    )
    for name in ("source", "load", "before", "after"):
        table.add_column(name)
    for name in ("published", "simulated", "error"):
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
            f"{100 * one.error:+.0f} %",
        )
    console.print(table)
    console.print("Published, and not simulated:")
    for name, source in sources.items():
        for left in source.left_out:
            console.print(f"  {name}: {left.what}: {left.why}")
