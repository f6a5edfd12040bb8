"""`batchgen trace`: import, generate, stats, plot. Parses and prints; batchgen.trace does the work.

Data goes to stdout, talk to stderr. NumPy and everything above it load inside the commands, so
that `--help` stays fast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.trace_devices import app as devices

if TYPE_CHECKING:
    from batchgen.trace.generate import Part
    from batchgen.trace.rounds import Rounds
    from batchgen.trace.table import Trace

app = typer.Typer(
    help="Make, convert and look at traces (the load of a batch).",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

app.add_typer(devices, name="devices")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Count and report bad lines instead of stopping.")
]
Format = Annotated[str, typer.Option("--format", help="auto, or the name of a format.")]
SHOWN_PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9")


@app.command("import")
def import_command(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A file of a known format, or a run's folder.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DST", help="Trace to write: .jsonl, .jsonl.gz"),
    ],
    format_name: Format = "auto",
    name: Annotated[
        str | None, typer.Option(help="Name of the trace [default: file name].")
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--source", help="Where the data come from; kept in the file.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Their licence; kept in the file.")] = None,
    skip_bad: SkipBad = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep only the first N rows.")] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="ServeGen: draw exactly N requests [default: 10000]."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="ServeGen: random seed.")] = 0,
    start_s: Annotated[float, typer.Option(help="ServeGen: begin this far into the span.")] = 0.0,
    duration_s: Annotated[
        float | None, typer.Option(help="ServeGen: seconds to draw from [default: to the end].")
    ] = None,
    rate_scale: Annotated[
        float | None,
        typer.Option(help="ServeGen: draw at the recorded rates times this, instead of N."),
    ] = None,
    prefixes: Annotated[
        Path | None,
        typer.Option(help="The workload of a request log: its prefix blocks, row by row."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a public trace format to batchgen's JSONL (docs/trace-schema.md)."""
    from dataclasses import replace

    from batchgen.errors import UserError
    from batchgen.trace.formats.registry import import_trace
    from batchgen.trace.formats.servegen import DEFAULT_REQUESTS, ServeGenOptions
    from batchgen.trace.write import refuse_existing, save

    if requests is not None and rate_scale is not None:
        raise UserError("--requests and --rate-scale exclude each other", remedy="give one of them")
    refuse_existing(output, force=force)
    options = ServeGenOptions(
        seed=seed,
        num_requests=None if rate_scale is not None else (requests or DEFAULT_REQUESTS),
        start_s=start_s,
        duration_s=duration_s,
        rate_scale=1.0 if rate_scale is None else rate_scale,
    )
    trace = import_trace(
        source,
        format=format_name,
        skip_bad=skip_bad,
        limit=limit,
        servegen=options,
        prefixes=prefixes,
    )
    if name is not None:
        trace = replace(trace, name=name)
    given = {"source": origin, "licence": licence}
    trace.meta.update({key: value for key, value in given.items() if value})
    save(trace, output, force=force)
    _report_written(trace, output, as_json)


@app.command()
def generate(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DST", help="Trace to write.")],
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="Number of rows.")],
    prompt_tokens: Annotated[
        str | None, typer.Option(help="Prompt lengths, e.g. lognormal:mean=700,sigma=0.8")
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option(help='Output lengths, e.g. "P95 4196, P99 15843, max 38631"')
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help='A kind of request, "WEIGHT / PROMPT / OUTPUT"; may be repeated.'),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Rows per prompt (one group each).")] = 1,
    alike: Annotated[
        float,
        typer.Option(help="Part of the variance of log outputs that rows of a prompt share, 0-1."),
    ] = 0.0,
    rate: Annotated[
        float, typer.Option(min=0, help="Poisson arrivals per second; 0: all at the start.")
    ] = 0.0,
    expert_skew: Annotated[
        float, typer.Option(min=0, help="Power-law exponent of the experts' load.")
    ] = 0.0,
    rounds: Annotated[
        str | None,
        typer.Option(help="Rounds of a row, the first answer among them: 3, or a distribution."),
    ] = None,
    follow_up_tokens: Annotated[
        str | None, typer.Option(help="Lengths of the follow-ups between rounds.")
    ] = None,
    round_output_tokens: Annotated[
        str | None, typer.Option(help="Output lengths after the first [default: --output-tokens].")
    ] = None,
    wait_s: Annotated[
        float, typer.Option(min=0, help="Mean exponential wait before a follow-up (a tool works).")
    ] = 0.0,
    name: Annotated[str, typer.Option(help="Name of the trace.")] = "generated",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a trace from length distributions.

    Distributions: lognormal:mean=M,sigma=S[,max=X], pareto:mean=M,alpha=A[,max=X], constant:N,
    quantiles "P50 700, P99 15843, max 38631, mean 900", mixtures "0.7*A + 0.3*B".
    """
    from batchgen.trace.generate import GenerateOptions
    from batchgen.trace.generate import generate as make
    from batchgen.trace.write import refuse_existing, save

    refuse_existing(output, force=force)
    options = GenerateOptions(
        num_rows=rows,
        seed=seed,
        samples_per_prompt=samples,
        alike=alike,
        rate_per_s=rate,
        expert_skew=expert_skew,
        rounds=_rounds(rounds, follow_up_tokens, round_output_tokens or output_tokens, wait_s),
    )
    trace = make(_parts(prompt_tokens, output_tokens, part or []), options, name=name)
    # The command's own words, so that the file says how to make it again.
    given = {
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "parts": part,
        "alike": alike,
        "rounds": rounds,
        "follow_up_tokens": follow_up_tokens,
        "round_output_tokens": round_output_tokens,
        "wait_s": wait_s,
    }
    trace.meta.update({key: value for key, value in given.items() if value})
    save(trace, output, force=force)
    _report_written(trace, output, as_json)


@app.command()
def stats(
    sources: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Traces, any format.")],
    format_name: Format = "auto",
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Lengths, tokens, ideal prefix hits, arrivals and groups of traces."""
    from batchgen.trace.formats.registry import import_trace
    from batchgen.trace.stats import describe

    found = [
        describe(import_trace(source, format=format_name, skip_bad=skip_bad)) for source in sources
    ]
    if as_json:
        typer.echo(json.dumps({"schema": 1, "traces": found}, indent=2, allow_nan=False))
        return
    for one in found:
        typer.echo("\n".join(_table(one)))


@app.command()
def plot(
    sources: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Traces, any format.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PICTURE", help="A .png, .pdf or .svg.")
    ],
    format_name: Format = "auto",
    skip_bad: SkipBad = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw length distributions and arrivals of up to seven traces in one picture."""
    from batchgen.trace.formats.registry import import_trace
    from batchgen.trace.plot import plot as draw
    from batchgen.trace.write import refuse_existing

    refuse_existing(output, force=force)
    traces = [import_trace(source, format=format_name, skip_bad=skip_bad) for source in sources]
    draw(traces, output, force=force)
    if as_json:
        names = [trace.name for trace in traces]
        typer.echo(json.dumps({"schema": 1, "picture": str(output), "traces": names}))
    else:
        typer.echo(f"drawn: {output}", err=True)


def _parts(prompt: str | None, output: str | None, parts: list[str]) -> tuple[Part, ...]:
    from batchgen.errors import UserError
    from batchgen.trace.generate import Part
    from batchgen.trace.lengths import parse_lengths

    if parts and (prompt is not None or output is not None):
        raise UserError(
            "--part excludes --prompt-tokens and --output-tokens", remedy="use one of the two ways"
        )
    if not parts:
        if prompt is None or output is None:
            raise UserError(
                "prompt and output lengths are needed",
                remedy="give --prompt-tokens and --output-tokens, "
                "for instance lognormal:mean=700,sigma=0.8",
            )
        return (Part(prompt=parse_lengths(prompt), output=parse_lengths(output)),)
    made = []
    for text in parts:
        fields = text.split("/")
        try:
            weight = float(fields[0])
        except ValueError:
            weight = float("nan")
        if len(fields) != 3 or not 0 < weight < float("inf"):
            raise UserError(
                f"cannot read the part {text!r}", remedy='write "WEIGHT / PROMPT / OUTPUT"'
            )
        made.append(
            Part(weight=weight, prompt=parse_lengths(fields[1]), output=parse_lengths(fields[2]))
        )
    return tuple(made)


def _rounds(
    count: str | None, follow_up: str | None, output: str | None, wait_mean_s: float
) -> Rounds | None:
    from batchgen.errors import UserError
    from batchgen.trace.lengths import parse_lengths
    from batchgen.trace.rounds import Rounds

    if count is None:
        if follow_up is not None or wait_mean_s:
            raise UserError("follow-ups and waits are of rounds", remedy="give --rounds N")
        return None
    if follow_up is None or output is None:
        raise UserError(
            "--rounds needs lengths",
            remedy="give --follow-up-tokens and --round-output-tokens, for instance constant:40",
        )
    return Rounds(
        count=parse_lengths(f"constant:{count}" if count.isdecimal() else count),
        follow_up=parse_lengths(follow_up),
        output=parse_lengths(output),
        wait_mean_s=wait_mean_s,
    )


def _report_written(trace: Trace, path: Path, as_json: bool) -> None:
    from batchgen.trace.stats import describe

    for reason, count in trace.meta.get("dropped", {}).items():
        typer.echo(f"dropped: {count} rows with {reason}", err=True)
    skipped = trace.meta.get("skipped")
    if skipped:
        typer.echo(f"skipped: {skipped['lines']} bad lines, the first:", err=True)
        for message in skipped["first"]:
            typer.echo(f"  {message}", err=True)
    if as_json:
        found: dict[str, Any] = {"schema": 1, "path": str(path), "trace": describe(trace)}
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        typer.echo(f"written: {path} ({len(trace):,} rows)", err=True)


def _table(one: dict[str, Any]) -> list[str]:
    """The statistics of one trace as aligned lines of text."""
    columns = ("mean", *SHOWN_PERCENTILES, "max", "total")
    lines = [f"{one['name']}: {one['rows']:,} rows, {one['total_tokens']:,} tokens"]
    lines.append(f"  {'tokens':<18}" + "".join(f"{column:>12}" for column in columns))
    for column in ("prompt_tokens", "output_tokens", "max_output_tokens"):
        if column in one:
            label = column.removesuffix("_tokens").replace("_", " ")
            values = "".join(f"{one[column][key]:>12,.0f}" for key in columns)
            lines.append(f"  {label:<18}{values}")
    if "stages" in one:
        stages = one["stages"]
        for column, label in (("prompt_tokens", "follow-ups"), ("output_tokens", "their output")):
            values = "".join(f"{stages[column][key]:>12,.0f}" for key in columns)
            lines.append(f"  {label:<18}{values}")
        lines.append(
            f"  stages            {stages['count']:,} after the first, of {stages['rows']:,} rows "
            f"(most {stages['most']}), waits of {stages['wait_mean_s']:.3g} s (mean) to "
            f"{stages['wait_max_s']:.3g} s"
        )
    arrivals = one["arrivals"]
    if arrivals["rate_per_s"] is None:
        lines.append("  arrivals          all at the start")
    else:
        lines.append(
            f"  arrivals          {arrivals['span_s']:,.1f} s, {arrivals['rate_per_s']:.3g} per "
            f"second, gap variation {arrivals['gap_cv']:.2f}"
        )
    if "prefix" in one:
        prefix = one["prefix"]
        lines.append(
            f"  prefix            ideal hit ratio {prefix['hit_ratio']:.3f}, "
            f"{prefix['distinct_blocks']:,} distinct of {prefix['blocks']:,} blocks "
            f"of {prefix['block_tokens']} tokens"
        )
    if "groups" in one:
        groups = one["groups"]
        lines.append(
            f"  groups            {groups['count']:,} of {groups['smallest']} to "
            f"{groups['largest']} rows"
        )
    if "expert_skew" in one:
        lines.append(f"  expert skew       {one['expert_skew']:g}")
    return lines
