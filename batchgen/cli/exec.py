"""`batchgen exec`: a JSONL file of prompts through a real model on this machine; no model code
here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.common import (
    parse_overrides,
    print_runs_json,
    print_table,
    progress_bar,
    say,
    users_code,
)
from batchgen.cli.stopping import stopped_by_signals
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import UserError
from batchgen.paths import check_input, check_new_output, check_output

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(name="exec")
def exec_(
    model: Annotated[
        Path,
        typer.Option(help="Hugging Face folder with safetensors, or org/name of a downloaded one."),
    ],
    input_: Annotated[
        Path, typer.Option("--input", "-i", help="JSONL: OpenAI batch lines, prompt or messages.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Answers, in input order.")],
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
    log: Annotated[
        str, typer.Option(metavar="off|steps|full", help="Decision log in the run directory.")
    ] = "off",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
    progress: Annotated[str, typer.Option(metavar="auto|off", help="Progress on stderr.")] = "auto",
) -> int:
    """Answer a file of prompts. Broken rows become error rows; the others are finished."""
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
    check_input("input", input_, remedy="give a JSONL file")
    check_output(output)
    if resume == "never":
        check_new_output(output, force=force)
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
    job = ExecJob(
        model=model,
        input=input_,
        output=output,
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
    )
    with (
        users_code(),
        stopped_by_signals() as stopping,
        progress_bar(policy, progress, real=True) as callback,
    ):
        ended = execute(job, progress=callback, stopping=stopping)
    # Said first: the answers are there, whatever becomes of the run directory.
    record = ended.record
    if record is not None and (remark := record.config["kernels_remark"]):
        say(f"note: attention and experts ran in torch, which is slower: {remark}")
    earlier = f", {ended.earlier} of them earlier" if ended.earlier else ""
    say(f"wrote {output}: {ended.done} rows answered, {ended.errors} error rows{earlier}")
    code = 1 if ended.errors else 0
    if record is None:  # an earlier process had answered all rows: there is no run to report
        if as_json:
            print_runs_json([])
        return code
    if out is not None:
        from batchgen.report.rundir import write_run

        summary = write_run(record, out, force=force)
    else:
        from batchgen.report.metrics import summary as summarise

        summary = summarise(record)
    if as_json:
        print_runs_json([summary])
    else:
        print_table([summary])
    return code
