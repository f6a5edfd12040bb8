"""`batchgen trace devices`: import, generate, stats, plot of device traces. Parses and prints;
batchgen.trace.devices does the work. NumPy and everything above it load inside the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from batchgen.trace.devices.events import DeviceTrace

app = typer.Typer(
    help="Make, convert and look at device traces (trouble of GPUs while a batch runs).",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Count and report bad lines instead of stopping.")
]
Format = Annotated[str, typer.Option("--format", help="auto, or the name of a format.")]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="DST", help="Trace to write: .jsonl, .jsonl.gz")
]


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A file of a known format.")],
    output: Output,
    format_name: Format = "auto",
    name: Annotated[
        str | None, typer.Option(help="Name of the trace [default: file name].")
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--source", help="Where the data come from; kept in the file.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Their licence; kept in the file.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Keep the first N GPUs only.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Each machine of the source is a node of N GPUs.")
    ] = None,
    start_s: Annotated[
        float, typer.Option(min=0, help="Begin this far into the trace, with what stands then.")
    ] = 0.0,
    duration_s: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds to keep [default: to the end].")
    ] = None,
    notice_s: Annotated[
        float | None, typer.Option(help="Notice before a reclaim [default: the provider's].")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Which machines go, where the source has counts only.")
    ] = 0,
    skip_bad: SkipBad = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a public trace of spot machines or slow workers (docs/device-traces.md)."""
    from dataclasses import replace

    from batchgen.errors import UserError
    from batchgen.trace.devices.events import MAX_S
    from batchgen.trace.devices.formats import ImportOptions, import_devices
    from batchgen.trace.devices.write import save
    from batchgen.trace.write import refuse_existing
    from batchgen.units import to_ps

    for flag, value in (("--start-s", start_s), ("--duration-s", duration_s or 0.0)):
        if not value <= MAX_S:
            raise UserError(f"{flag} is {value:g}", remedy=f"give at most {MAX_S}")
    refuse_existing(output, force=force)
    options = ImportOptions(notice_s=notice_s, seed=seed, as_nodes=gpus_per_node is not None)
    trace = import_devices(source, format=format_name, skip_bad=skip_bad, options=options)
    if gpus_per_node is not None:
        trace = replace(trace, gpus_per_node=gpus_per_node)
    if start_s or duration_s is not None:
        trace = trace.window(to_ps(start_s), to_ps(duration_s or 0.0))
    if gpus is not None:
        trace = trace.first_gpus(gpus)
    if name is not None:
        trace = replace(trace, name=name)
    given = {"source": origin, "licence": licence}
    trace.meta.update({key: value for key, value in given.items() if value})
    save(trace, output, force=force)
    _report_written(trace, output, as_json)


@app.command()
def generate(
    output: Output,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the cluster.")],
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs that share a host.")] = 8,
    hours: Annotated[float, typer.Option(help="Length of the trace.")] = 6.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    kinds: Annotated[
        str, typer.Option(help="What to draw, of failures, spread, slow, spot, skew, host.")
    ] = "failures,spread,slow",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="GROUP.NAME=VALUE",
            help="Change a number of 'trace devices rates'; may be repeated.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the trace.")] = "drawn",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw a device trace from published rates ('trace devices rates' has them with sources)."""
    from batchgen.cli.common import parse_names, parse_overrides
    from batchgen.trace.devices.generate import DrawOptions, draw
    from batchgen.trace.devices.rates import rates
    from batchgen.trace.devices.write import save
    from batchgen.trace.write import refuse_existing

    refuse_existing(output, force=force)
    options = DrawOptions(
        gpus=gpus,
        gpus_per_node=gpus_per_node,
        hours=hours,
        seed=seed,
        kinds=parse_names("--kinds", kinds),
    )
    trace = draw(options, rates(parse_overrides(changes or ())), name)
    save(trace, output, force=force)
    _report_written(trace, output, as_json)


@app.command("rates")
def rates_command(as_json: Json = False) -> None:
    """The numbers that 'generate' draws from, each with its source."""
    from batchgen.trace.devices.rates import catalog

    found = catalog()
    if as_json:
        plain = {
            group: {name: {"value": one.value, "source": one.source} for name, one in of.items()}
            for group, of in found.items()
        }
        typer.echo(json.dumps({"schema": 1, "rates": plain}, indent=2))
        return
    for group, of in found.items():
        for name, one in of.items():
            typer.echo(f"{f'{group}.{name}':<24} {one.value:>8g}  {one.source}")


@app.command()
def stats(
    sources: Annotated[
        list[Path], typer.Argument(metavar="TRACE...", help="Device traces, any format.")
    ],
    format_name: Format = "auto",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Losses, slowness and what capacity is left of device traces."""
    from batchgen.trace.devices.formats import import_devices
    from batchgen.trace.devices.stats import describe

    found = [
        describe(import_devices(source, format=format_name, skip_bad=skip_bad))
        for source in sources
    ]
    if as_json:
        typer.echo(json.dumps({"schema": 1, "traces": found}, indent=2, allow_nan=False))
        return
    for one in found:
        typer.echo("\n".join(_table(one)))


@app.command()
def plot(
    source: Annotated[Path, typer.Argument(metavar="TRACE", help="A device trace, any format.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PICTURE", help="A .png, .pdf or .svg.")
    ],
    format_name: Format = "auto",
    skip_bad: SkipBad = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw the state of every GPU over time, and the capacity that is left."""
    from batchgen.trace.devices.formats import import_devices
    from batchgen.trace.devices.plot import plot as draw
    from batchgen.trace.write import refuse_existing

    refuse_existing(output, force=force)
    trace = import_devices(source, format=format_name, skip_bad=skip_bad)
    draw(trace, output, force=force)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "picture": str(output), "trace": trace.name}))
    else:
        typer.echo(f"drawn: {output}", err=True)


def _report_written(trace: DeviceTrace, path: Path, as_json: bool) -> None:
    from batchgen.trace.devices.stats import describe

    skipped = trace.meta.get("skipped")
    if skipped:
        typer.echo(f"skipped: {skipped['lines']} bad lines, the first:", err=True)
        for message in skipped["first"]:
            typer.echo(f"  {message}", err=True)
    if as_json:
        found = {"schema": 1, "path": str(path), "trace": describe(trace)}
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        typer.echo(f"written: {path} ({len(trace.troubles):,} lines)", err=True)


def _table(one: dict[str, Any]) -> list[str]:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in one["kinds"].items()) or "no trouble"
    lines = [
        f"{one['name']}: {one['gpus']:,} GPUs, {one['span_h']:,.2f} h, {kinds}",
        f"  capacity left     {one['capacity']:.4f} of all GPUs over the time",
        f"  lost              {one['lost_share']:.4f} of the time, {one['losses']:,} losses"
        + (f", one per {one['mtbf_gpu_h']:,.1f} GPU-h" if one["mtbf_gpu_h"] else ""),
        f"  slow              {one['slow_share']:.4f} of the time, "
        f"at most {one['worst_factor']:g} times",
    ]
    for key, label, unit in (
        ("outage_h", "outages", "h"),
        ("burst_gpus", "lost together", "GPUs"),
        ("skew", "expert skew", ""),
    ):
        if key in one:
            numbers = " / ".join(f"{one[key][name]:.3g}" for name in ("p50", "p90", "max"))
            lines.append(f"  {label:<17} {numbers} {unit} (p50 / p90 / max)".replace("  (", " ("))
    return lines
