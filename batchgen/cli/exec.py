"""`batchgen exec`: a JSONL file of prompts through a real model on this machine; no model code
here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchgen.cli.common import (
    parse_overrides,
    print_runs_json,
    print_table,
    progress_bar,
    say,
    users_code,
)
from batchgen.cli.spooling import placed, spooled
from batchgen.cli.stopping import stopped_by_signals
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import Unfinished, UserError
from batchgen.job.shape import make_shape
from batchgen.paths import check_new_output, check_output, check_result

if TYPE_CHECKING:
    from batchgen.exec.run import Ended

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
    output: Annotated[Path, typer.Option("--output", "-o", help="Answers; - is standard output.")],
    policy: Annotated[str, typer.Option(help="Preset to run.")] = "batchgen",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PART.OPTION=VALUE", help="Change one option; may be repeated."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16 [default: float32 on the CPU, bfloat16 on a GPU]."
        ),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="The same tokens under every policy and batch; float32, cpu."),
    ] = False,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the model runs.")] = "cpu",
    max_tokens: Annotated[
        int, typer.Option(help="Output budget of rows that name none, in tokens.")
    ] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(help="Of rows that name none, 0 is greedy; default: the model's, else 1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampled rows.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.")] = None,
    input_format: Annotated[
        str,
        typer.Option(
            metavar="auto|jsonl|csv|parquet|text", help="Form of the input; gzip of any is read."
        ),
    ] = "auto",
    prompt_column: Annotated[
        str | None, typer.Option(help="The column or field that holds the prompt.")
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="A prompt made of columns, for instance 'Q: {question}'.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts from columns go through the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message of such chats.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fields that are not known make error rows.")
    ] = False,
    body: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="What every row does (docs/writing-a-body.md)."
        ),
    ] = None,
    hbm_pages: Annotated[
        int | None, typer.Option(help="KV pages of the device; default: what the rows can need.")
    ] = None,
    host_pages: Annotated[int | None, typer.Option(help="KV pages of the host tier.")] = None,
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
    log: Annotated[
        str, typer.Option(metavar="off|steps|full", help="Decision log in the run directory.")
    ] = "off",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
    progress: Annotated[str, typer.Option(metavar="auto|off", help="Progress on stderr.")] = "auto",
) -> int:
    """Answer a file of prompts. Broken rows become error rows; the others are finished."""
    _check_options(log, out, order, max_tokens, limit, threads)
    shape = make_shape(prompt_column, prompt_template, chat=chat, system=system)
    to_stdout = str(output) == "-"
    if to_stdout and as_json:
        raise UserError("-o - and --json both print", remedy="leave one out")
    if to_stdout and resume != "never" and job_dir is None:
        raise UserError(f"-o - with --resume {resume} keeps nothing", remedy="add --job-dir")
    if not to_stdout:
        check_output(output)
        if resume == "never":
            check_new_output(output, force=force)
    for path in () if manifest is None else (manifest,):
        check_result(path, force=force)
    if out is not None:
        from batchgen.report.rundir import check_target

        check_target(out, force=force)
    calm_threads()
    try:
        from batchgen.exec.devices import usual_dtype
        from batchgen.exec.job import ExecJob
        from batchgen.exec.run import execute
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
        )
        with (
            users_code(),
            stopped_by_signals() as stopping,
            progress_bar(policy, progress, real=True) as callback,
        ):
            try:
                ended = execute(job, progress=callback, stopping=stopping)
            except Unfinished as error:
                if to_stdout and job_dir is None:
                    remedy = "give --job-dir or -o FILE to be able to go on"
                    raise Unfinished(error.message, remedy=remedy, code=error.code) from None
                raise
    _say_ended(ended, output)
    if manifest is not None:
        from batchgen.report.rundir import write_json

        write_json(manifest, ended.manifest)
    _report(ended, out, force=force, as_json=as_json, quiet=to_stdout)
    return 1 if ended.errors else 0


def _check_options(
    log: str,
    out: Path | None,
    order: str,
    max_tokens: int,
    limit: int | None,
    threads: int | None,
) -> None:
    if log not in ("off", "steps", "full"):
        raise UserError(f"--log is '{log}'", remedy="choose one of off, steps, full")
    if log != "off" and out is None:
        raise UserError(f"--log {log} has nowhere to go", remedy="add --out DIR")
    if order not in ("input", "completion"):
        raise UserError(f"--order is '{order}'", remedy="choose one of input, completion")
    if max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}", remedy="give at least 1")
    for name, value in (("limit", limit), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}", remedy="give at least 1")


def _say_ended(ended: Ended, output: Path) -> None:
    """Said first: the answers are there, whatever becomes of the run directory."""
    record = ended.record
    if record is not None:
        if remark := record.config["kernels_remark"]:
            say(f"note: attention and experts ran in torch, which is slower: {remark}")
        for name, count in record.config["unknown_fields"].items():
            say(f"note: field '{name:.60}' of {count} rows is not known and was ignored")
    earlier = f", {ended.earlier} of them earlier" if ended.earlier else ""
    where = "standard output" if str(output) == "-" else output
    say(f"wrote {where}: {ended.done} rows answered, {ended.errors} error rows{earlier}")


def _report(ended: Ended, out: Path | None, *, force: bool, as_json: bool, quiet: bool) -> None:
    """The run directory, and the table or JSON of the run; of no run where an earlier process had
    answered all rows."""
    if ended.record is None:
        if as_json:
            print_runs_json([])
        return
    if out is not None:
        from batchgen.report.rundir import write_run

        summary = write_run(ended.record, out, force=force, more={"manifest.json": ended.manifest})
    else:
        from batchgen.report.metrics import summary as summarise

        summary = summarise(ended.record)
    if as_json:
        print_runs_json([summary])
    elif not quiet:
        print_table([summary])
