"""`batchgen exec`: a JSONL file of prompts through a real model on this machine; no model code
here."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.common import parse_overrides, users_code
from batchgen.cli.dry_run import dry_run as look
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
from batchgen.cli.exec_checks import (
    check_numbers,
    check_options,
    check_outputs,
    form_of_output,
)
from batchgen.cli.exec_ending import report, say_ended, say_interrupted
from batchgen.cli.forecasting import check_prediction, predictor
from batchgen.cli.input_options import Chat, InputFormat, PromptColumn, PromptTemplate, Strict
from batchgen.cli.live import Talk, mode_of, shown
from batchgen.cli.spooling import placed, print_file, spooled
from batchgen.cli.stopping import stopped_by_signals
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import Unfinished, UserError
from batchgen.job.error_limit import parse_error_limit
from batchgen.job.folder import default_folder
from batchgen.job.shape import make_shape
from batchgen.job.shard import parse_shard

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(name="exec")
def exec_(
    model: Annotated[
        Path,
        typer.Option(help="Hugging Face folder with safetensors, or org/name of a downloaded one."),
    ],
    input_: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            help="Rows: OpenAI batch lines, prompt or messages, or columns; - is standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Answers; - is standard output. Not with --dry-run."),
    ] = None,
    policy: Policy = "batchgen",
    overrides: Overrides = None,
    dtype: Dtype = None,
    exact: Exact = False,
    device: Device = "cpu",
    max_tokens: Annotated[
        int, typer.Option(help="Output budget of rows that name none, in tokens.")
    ] = 256,
    temperature: Temperature = None,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only each N-th row, from the I-th: N jobs share a file."),
    ] = None,
    input_format: InputFormat = "auto",
    prompt_column: PromptColumn = None,
    prompt_template: PromptTemplate = None,
    chat: Chat = False,
    system: Annotated[str | None, typer.Option(help="System message of such chats.")] = None,
    strict: Strict = False,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that rows give for this model; may be repeated. Rows with another one are "
            "error rows; without it any name is answered."
        ),
    ] = None,
    body: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="What every row does (docs/writing-a-body.md)."
        ),
    ] = None,
    hbm_pages: HbmPages = None,
    host_pages: HostPages = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a run directory here.")] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace output and run directory; begin a job anew."),
    ] = False,
    resume: Annotated[
        str,
        typer.Option(
            metavar="never|always|if-possible", help="Go on with a job that was stopped or killed."
        ),
    ] = "never",
    job_dir: Annotated[
        Path | None,
        typer.Option(help="Where a job that runs keeps its answers; default: OUTPUT.job."),
    ] = None,
    order: Annotated[
        str, typer.Option(metavar="input|completion", help="Order of the answers.")
    ] = "input",
    manifest: Annotated[
        Path | None, typer.Option(help="Write what was answered, counted and hashed, as JSON here.")
    ] = None,
    output_format: Annotated[
        str,
        typer.Option(metavar="auto|jsonl|parquet", help="Form of the answers; auto: by name."),
    ] = "auto",
    error_file: Annotated[
        Path | None,
        typer.Option(help="Requests of failed rows go here too, to be tried again."),
    ] = None,
    max_errors: Annotated[
        str | None,
        typer.Option(metavar="N|P%", help="Stop, to be gone on with, when more rows have failed."),
    ] = None,
    on_error: Annotated[
        str, typer.Option(metavar="row|stop", help="stop is --max-errors 0.")
    ] = "row",
    row_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds from its first pass after which a row becomes an error row."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check every row, say plan and memory; run and write nothing."
        ),
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile of this machine: the simulator's prediction beside the truth."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Predict for this GPU of the catalog, not for this machine: --dry-run."),
    ] = None,
    expected_tokens: Annotated[
        int | None,
        typer.Option(help="What it takes for a row's length; default: all it may produce."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the machine; --dry-run then says what a job costs.")
    ] = None,
    log: Annotated[
        str,
        typer.Option(
            metavar="auto|off|steps|full",
            help="Decision log; auto: in the job's folder only, which goes with it. steps, full: "
            "in --out too.",
        ),
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
    progress: Annotated[
        str, typer.Option(metavar="auto|bar|plain|off", help="How the job stands, on stderr.")
    ] = "auto",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing but errors, and what --json prints.")
    ] = False,
    json_events: Annotated[
        bool, typer.Option("--json-events", help="Progress and notes as JSON lines on stderr.")
    ] = False,
) -> int:
    """Answer a file of prompts. Broken rows become error rows; the others are finished."""
    check_options(
        log=log, out=out, order=order, max_tokens=max_tokens, limit=limit, threads=threads
    )
    check_numbers(
        row_timeout=row_timeout, expected_tokens=expected_tokens, price_per_hour=price_per_hour
    )
    errors = parse_error_limit(max_errors, on_error)
    mode = mode_of(progress, quiet=quiet, json_events=json_events)
    shape = make_shape(prompt_column, prompt_template, chat=chat, system=system)
    check_prediction(profile, gpu, body=body, dry_run=dry_run)
    if dry_run:
        output = Path(os.devnull)
    else:
        check_outputs(
            output,
            resume=resume,
            job_dir=job_dir,
            force=force,
            as_json=as_json,
            error_file=error_file,
            manifest=manifest,
            out=out,
        )
    assert output is not None
    to_stdout = str(output) == "-"
    calm_threads()
    try:
        from batchgen.exec.devices import usual_dtype
        from batchgen.exec.job import ExecJob
        from batchgen.exec.run import Ended, execute
    except ModuleNotFoundError as error:
        raise UserError(
            f"batchgen exec needs {error.name}", remedy="pip install 'batchgen[exec]'"
        ) from None
    with spooled(input_) as rows, placed(output) as file:
        job = ExecJob(
            model=model,
            input=rows,
            output=file,
            policy=policy,
            overrides=parse_overrides(overrides or ()),
            dtype=dtype or usual_dtype(device),
            exact=exact,
            device=device,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            limit=limit,
            hbm_pages=hbm_pages,
            host_pages=host_pages,
            threads=threads,
            force=force,
            log=log,
            body=body,
            folder=job_dir,
            resume=resume,
            order=order,
            form=input_format,
            shape=shape,
            strict=strict,
            models=tuple(served_model_name or ()),
            row_timeout_s=row_timeout,
            max_errors=errors,
            error_file=error_file,
            manifest=manifest,
            output_form=form_of_output(output, output_format),
            shard=parse_shard(shard),
        )
        if dry_run:
            return look(
                job,
                profile=profile,
                gpu=gpu,
                expected_tokens=expected_tokens,
                price_per_hour=price_per_hour,
                as_json=as_json,
            )
        stdout = sys.stdout  # while code of the user's may run that is another one
        talk = Talk(as_json=mode == "json", quiet=quiet)
        predict = None if profile is None else predictor(profile, expected_tokens, talk.say)
        with (
            users_code(),
            stopped_by_signals() as stopping,
            ExitStack() as display,
        ):
            watch = display.enter_context(shown(mode, f"{model.name or model}, {policy}"))

            def deliver(ended: Ended) -> None:
                if to_stdout:
                    display.close()
                    with redirect_stdout(stdout):
                        print_file(file)

            try:
                ended = execute(
                    job,
                    stopping=stopping,
                    watch=watch,
                    predict=predict,
                    say=talk.say,
                    deliver=deliver,
                )
            except Unfinished as error:
                if to_stdout and job_dir is None:
                    remedy = "give --job-dir or -o FILE to be able to go on"
                    raise Unfinished(error.message, remedy=remedy, code=error.code) from None
                raise
            except KeyboardInterrupt:
                say_interrupted(job_dir or default_folder(output), talk)
                raise
    say_ended(ended, output, error_file, talk)
    report(ended, out, force=force, as_json=as_json, quiet=to_stdout or quiet)
    return 1 if ended.errors else 0
