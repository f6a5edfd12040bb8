"""The flags of `batchgen exec`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.engine_options import (
    Device,
    Dtype,
    Exact,
    HbmPages,
    HostPages,
    Overrides,
    Policy,
    Seed,
    Temperature,
)
from batchgen.cli.input_options import Chat, InputFormat, PromptColumn, PromptTemplate, Strict


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecFlags:
    """As typer has read them: types and given ranges hold, nothing else is checked."""

    model: Annotated[
        Path,
        typer.Option(help="Hugging Face folder with safetensors, or org/name of a downloaded one."),
    ]
    input: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            help="Rows: OpenAI batch lines, prompt or messages, or columns; - is standard input.",
        ),
    ]
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Answers; - is standard output. Not with --dry-run."),
    ] = None
    policy: Policy = "batchgen"
    overrides: Overrides = None
    dtype: Dtype = None
    exact: Exact = False
    device: Device = "cpu"
    max_tokens: Annotated[
        int, typer.Option(help="Output budget of rows that name none, in tokens.")
    ] = 256
    temperature: Temperature = None
    seed: Seed = 0
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.")] = None
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only each N-th row, from the I-th: N jobs share a file."),
    ] = None
    input_format: InputFormat = "auto"
    prompt_column: PromptColumn = None
    prompt_template: PromptTemplate = None
    chat: Chat = False
    system: Annotated[str | None, typer.Option(help="System message of such chats.")] = None
    strict: Strict = False
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that rows give for this model; may be repeated. Rows with another one are "
            "error rows; without it any name is answered."
        ),
    ] = None
    body: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="What every row does (docs/writing-a-body.md)."
        ),
    ] = None
    hbm_pages: HbmPages = None
    host_pages: HostPages = None
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's.")] = None
    out: Annotated[Path | None, typer.Option(help="Write a run directory here.")] = None
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace output and run directory; begin a job anew."),
    ] = False
    resume: Annotated[
        str,
        typer.Option(
            metavar="never|always|if-possible", help="Go on with a job that was stopped or killed."
        ),
    ] = "never"
    job_dir: Annotated[
        Path | None,
        typer.Option(help="Where a job that runs keeps its answers; default: OUTPUT.job."),
    ] = None
    order: Annotated[
        str, typer.Option(metavar="input|completion", help="Order of the answers.")
    ] = "input"
    manifest: Annotated[
        Path | None, typer.Option(help="Write what was answered, counted and hashed, as JSON here.")
    ] = None
    output_format: Annotated[
        str,
        typer.Option(metavar="auto|jsonl|parquet", help="Form of the answers; auto: by name."),
    ] = "auto"
    error_file: Annotated[
        Path | None,
        typer.Option(help="Requests of failed rows go here too, to be tried again."),
    ] = None
    max_errors: Annotated[
        str | None,
        typer.Option(metavar="N|P%", help="Stop, to be gone on with, when more rows have failed."),
    ] = None
    on_error: Annotated[str, typer.Option(metavar="row|stop", help="stop is --max-errors 0.")] = (
        "row"
    )
    row_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds from its first pass after which a row becomes an error row."),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check every row, say plan and memory; run and write nothing."
        ),
    ] = False
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile of this machine: the simulator's prediction beside the truth."),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(help="Predict for this GPU of the catalog, not for this machine: --dry-run."),
    ] = None
    expected_tokens: Annotated[
        int | None,
        typer.Option(help="What it takes for a row's length; default: all it may produce."),
    ] = None
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the machine; --dry-run then says what a job costs.")
    ] = None
    log: Annotated[
        str,
        typer.Option(
            metavar="auto|off|steps|full",
            help="Decision log; auto: in the job's folder only, which goes with it. steps, full: "
            "in --out too.",
        ),
    ] = "auto"
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = (
        False
    )
    progress: Annotated[
        str, typer.Option(metavar="auto|bar|plain|off", help="How the job stands, on stderr.")
    ] = "auto"
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing but errors, and what --json prints.")
    ] = False
    json_events: Annotated[
        bool, typer.Option("--json-events", help="Progress and notes as JSON lines on stderr.")
    ] = False
