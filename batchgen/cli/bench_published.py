"""`batchgen bench published`: published completion times beside simulated ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
import typer

from batchgen.cli.common import say, tell_result
from batchgen.errors import UserError
from batchgen.paths import aside, check_result
from batchgen.simjob import Simulate

if TYPE_CHECKING:
    from batchgen.catalog.published import Cell, Load, Outcome, RatioOutcome

SPREADS = (0.0, 0.2, 0.6, 1.0)  # of prompts and outputs of a mix, as sigma of a log-normal
CUTS = (8192, 16384, 38631)  # the last is the longest of DeepSeek-R1's production trace


def published(
    only: Annotated[
        str | None, typer.Option(help="Only cells whose load, system or GPUs hold this text.")
    ] = None,
    spread: Annotated[
        bool, typer.Option(help="Also what other spreads and cuts of the mix take.")
    ] = True,
    mitigation: Annotated[
        bool, typer.Option(help="Also migration and the mitigation of long tails.")
    ] = True,
    draws: Annotated[
        int, typer.Option(min=1, help="How often the lengths of a rollout are drawn.")
    ] = 3,
    commands: Annotated[
        Path | None,
        typer.Option(help="Folder for the traces; prints the command of each cell instead."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Published completion times, simulated ones and their ratio; exit code 1 when a bar is
    missed."""
    from batchgen.catalog.mitigation import load_sources
    from batchgen.catalog.mitigation import missed as missed_of
    from batchgen.catalog.published import load_published, mean_error, misordered, ratios
    from batchgen.cli import bench_mitigation as tails

    if out is not None:
        check_result(out, force=force)
    data = load_published()
    cells = [cell for cell in data.cells if only is None or only in _text(cell)]
    sources = load_sources() if mitigation else {}
    compared_tails = tails.chosen(sources, only)
    if not cells and not compared_tails:
        raise UserError(f"--only '{only}' leaves no cell", remedy="leave it out to see them all")
    if commands is not None:
        _commands(cells, data.loads, commands)
        for line in tails.commands(sources, compared_tails, commands):
            print(line)
        return 0
    with aside("published") as folder:
        outcomes = list(_outcomes(cells, data.loads, folder))
        wider = list(_wider(cells, data.loads, folder)) if spread else []
        found_tails = list(tails.measured(sources, compared_tails, folder, draws=draws))
    found = ratios(data, outcomes)
    wrong, compared = misordered(outcomes)
    mean = mean_error(outcomes) if outcomes else 0.0
    missed = _missed(outcomes, found, len(wrong), mean, whole=only is None)
    missed += missed_of(found_tails)
    document = {
        "schema": 1,
        "benchmark": "bench published",
        "cells": [
            msgspec.to_builtins(one.cell)
            | {"simulated_minutes": one.minutes, "error": one.error, "failed": one.failed_rows}
            for one in outcomes
        ],
        "rows": residuals(outcomes, data.loads),
        "mean_absolute_error": mean,
        "ratios": [
            msgspec.to_builtins(one.ratio)
            | {"published": one.published, "simulated": one.simulated}
            for one in found
        ],
        "orders_compared": compared,
        "orders_wrong": len(wrong),
        "spread": wider,
        "mitigation": tails.document(sources, found_tails),
        "missed": missed,
    }

    def show() -> None:
        if outcomes:
            _print(outcomes, found, wider)
            right = f"{compared - len(wrong)} of {compared} orders as published"
            print(f"Mean error {100 * mean:.1f} %; {right}")
        if found_tails:
            tails.show(sources, found_tails)

    return tell_result(document, show, missed, out=out, as_json=as_json)


def residuals(outcomes: Sequence[Outcome], loads: dict[str, Load]) -> list[dict[str, Any]]:
    """Errors by cluster and kind of model, and by system too, for `benchmarks/residuals.py`."""
    from batchgen.cost.residuals import spread_of
    from batchgen.model import load_model

    groups: dict[tuple[str, ...], list[float]] = {}
    for one in outcomes:
        kind = load_model(loads[one.cell.load].model).kind
        for key in ((one.cell.cluster, kind), (one.cell.cluster, kind, one.cell.system)):
            groups.setdefault(key, []).append(one.error)
    return [
        {
            "what": "completion time, constants fitted to these points",
            "costs": "roofline",
            **dict(zip(("cluster", "model_kind", "engine"), key, strict=False)),
            "errors": spread_of(errors),
        }
        for key, errors in sorted(groups.items())
    ]


def _text(cell: Cell) -> str:
    return f"{cell.load} {cell.label} {cell.system} {cell.gpus} {cell.cluster}"


def _missed(
    outcomes: Sequence[Outcome],
    found: Sequence[RatioOutcome],
    wrong: int,
    mean: float,
    *,
    whole: bool,
) -> list[str]:
    """What is beyond its bar, in words. The mean has one over all cells only."""
    from batchgen.catalog.published import MEAN_BAR

    lines = [
        f"{one.cell.label} on {one.cell.gpus} GPUs, {one.cell.load}: {100 * one.error:+.0f} %, bar "
        f"{100 * one.cell.bar:.0f} %"
        for one in outcomes
        if not one.passes
    ]
    lines += [
        f"{one.ratio.slow} over {one.ratio.fast}, {one.ratio.load}: {one.simulated:.2f}, published "
        f"{one.published:.2f}"
        for one in found
        if not one.passes
    ]
    if wrong:
        lines.append(f"{wrong} orders are not as published")
    if whole and mean > MEAN_BAR:
        lines.append(f"mean error {100 * mean:.1f} %, bar {100 * MEAN_BAR:.0f} %")
    return lines


def _simulated(cell: Cell, load: Load, name: str, folder: Path) -> dict[str, Any]:
    """The summary of a cell's run."""
    from batchgen.catalog.published import job_of, write_trace
    from batchgen.report.metrics import summary

    simulate = cast(Simulate, import_module("batchgen.sim.run").simulate)
    return summary(simulate(job_of(cell, load, write_trace(name, load, folder))))


def _outcomes(cells: Sequence[Cell], loads: dict[str, Load], folder: Path) -> Iterator[Outcome]:
    from batchgen.catalog.published import Outcome

    for cell in cells:
        found = _simulated(cell, loads[cell.load], cell.load, folder)
        say(f"{cell.label} on {cell.gpus} GPUs, {cell.load}")
        yield Outcome(cell=cell, minutes=found["bct_s"] / 60, failed_rows=int(found["failed_rows"]))


def _wider(cells: Sequence[Cell], loads: dict[str, Load], folder: Path) -> Iterator[dict[str, Any]]:
    """The mixes with other spreads of their lengths and the same means, outputs cut elsewhere."""
    from batchgen.catalog.published import respread

    for cell in cells:
        for sigma in SPREADS:
            for cut in CUTS:
                changed = respread(loads[cell.load], sigma=sigma, cut_tokens=cut)
                if changed is None:
                    continue
                if sigma or cut == CUTS[0]:  # without a spread nothing is cut
                    name = f"{cell.load}-{sigma}-{cut}"
                    found = _simulated(cell, changed, name, folder)
                yield {
                    "system": cell.label,
                    "load": cell.load,
                    "sigma": sigma,
                    "cut_tokens": cut,
                    "simulated_minutes": found["bct_s"] / 60,
                    "published_minutes": cell.minutes,
                }


def _commands(cells: Sequence[Cell], loads: dict[str, Load], folder: Path) -> None:
    """Writes the traces and prints, for each cell, the command that simulates it."""
    from batchgen.catalog.published import job_of, write_trace
    from batchgen.simcommand import command

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no path"
        raise UserError(
            f"--commands {folder} cannot be made ({why})", remedy="give another folder"
        ) from None
    for cell in cells:
        path = write_trace(cell.load, loads[cell.load], folder)
        print(command(job_of(cell, loads[cell.load], path)))


def _print(
    outcomes: Sequence[Outcome], found: Sequence[RatioOutcome], wider: Sequence[dict[str, Any]]
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120, highlight=False)
    marked = not (all(one.passes for one in outcomes) and all(one.passes for one in found))
    table = Table(
        title="Published and simulated completion times",
        title_justify="left",
        caption="!: beyond its bar" if marked else None,
        caption_justify="left",
    )
    for name in ("load", "GPUs", "system", "layout"):
        table.add_column(name, no_wrap=True)
    for name in ("published", "simulated", "ratio", "bar"):
        table.add_column(name, justify="right")
    for one in outcomes:
        cell = one.cell
        table.add_row(
            cell.load,
            f"{cell.gpus} {cell.cluster}",
            cell.label,
            cell.layout,
            _minutes(cell.minutes),
            _minutes(one.minutes),
            f"{one.minutes / cell.minutes:.2f}" + ("" if one.passes else " !"),
            f"{100 * cell.bar:.0f} %",
        )
    for ratio in found:
        table.add_row(
            ratio.ratio.load,
            "",
            f"{ratio.ratio.slow} / {ratio.ratio.fast}",
            "",
            f"{ratio.published:.2f} x",
            f"{ratio.simulated:.2f} x",
            f"{ratio.simulated / ratio.published:.2f}" + ("" if ratio.passes else " !"),
            f"{100 * ratio.ratio.bar:.0f} %",
        )
    console.print(table)
    if wider:
        table = Table(
            title="Lengths of the mix spread otherwise, outputs cut elsewhere, the same means",
            title_justify="left",
        )
        for name in ("load", "system", "sigma"):
            table.add_column(name, no_wrap=True)
        for cut in CUTS:
            table.add_column(f"cut at {cut:,}", justify="right")
        table.add_column("published", justify="right")
        for start in range(0, len(wider), len(CUTS)):
            rows = wider[start : start + len(CUTS)]
            table.add_row(
                rows[0]["load"],
                rows[0]["system"],
                f"{rows[0]['sigma']:g}",
                *(_minutes(row["simulated_minutes"]) for row in rows),
                _minutes(rows[0]["published_minutes"]),
            )
        console.print(table)


def _minutes(minutes: float) -> str:
    return f"{minutes / 60:,.1f} h" if minutes >= 1000 else f"{minutes:.1f} min"
