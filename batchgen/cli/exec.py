"""`batchgen exec`: a JSONL file of prompts through a real model on this machine; no model code
here."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchgen.cli.asked import extra_needed, of_engine
from batchgen.cli.common import users_code
from batchgen.cli.dry_run import dry_run as look
from batchgen.cli.exec_checks import (
    check_numbers,
    check_options,
    check_outputs,
    form_of_output,
)
from batchgen.cli.exec_ending import report, say_ended, say_interrupted
from batchgen.cli.exec_flags import ExecFlags
from batchgen.cli.forecasting import check_prediction, predictor
from batchgen.cli.live import Talk, mode_of, shown
from batchgen.cli.options import command
from batchgen.cli.spooling import placed, print_file, spooled
from batchgen.cli.stopping import stopped_by_signals
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import Unfinished
from batchgen.job.error_limit import parse_error_limit
from batchgen.job.folder import default_folder
from batchgen.job.shape import make_shape
from batchgen.job.shard import parse_shard

if TYPE_CHECKING:
    from batchgen.exec.job import ExecJob
    from batchgen.exec.run import Ended
    from batchgen.job.error_limit import ErrorLimit
    from batchgen.job.shape import Shape

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@command(app, ExecFlags, name="exec")
def exec_(asked: ExecFlags) -> int:
    """Answer a file of prompts. Broken rows become error rows; the others are finished."""
    check_options(asked)
    check_numbers(asked)
    errors = parse_error_limit(asked.max_errors, asked.on_error)
    mode = mode_of(asked.progress, quiet=asked.quiet, json_events=asked.json_events)
    shape = make_shape(
        asked.prompt_column, asked.prompt_template, chat=asked.chat, system=asked.system
    )
    check_prediction(asked.profile, asked.gpu, body=asked.body, dry_run=asked.dry_run)
    output = Path(os.devnull) if asked.dry_run else check_outputs(asked)
    calm_threads()
    with extra_needed("exec", "exec"):
        import batchgen.exec.run  # noqa: F401  # before the input is read
    talk = Talk(as_json=mode == "json", quiet=asked.quiet)
    with spooled(asked.input) as rows, placed(output) as file:
        job = _job(asked, rows, file, output=output, errors=errors, shape=shape)
        if asked.dry_run:
            return look(
                job,
                profile=asked.profile,
                gpu=asked.gpu,
                expected_tokens=asked.expected_tokens,
                price_per_hour=asked.price_per_hour,
                as_json=asked.as_json,
            )
        ended = _answer(asked, job, output, mode, talk)
    say_ended(ended, output, asked.error_file, talk)
    quiet = str(output) == "-" or asked.quiet
    report(ended, asked.out, force=asked.force, as_json=asked.as_json, quiet=quiet)
    return 1 if ended.errors else 0


def _job(
    asked: ExecFlags,
    rows: Path,
    file: Path,
    *,
    output: Path,
    errors: ErrorLimit | None,
    shape: Shape | None,
) -> ExecJob:
    """rows, file: where rows are read and answers are written, whatever `asked` calls them."""
    from batchgen.exec.job import ExecJob

    return ExecJob(
        input=rows,
        output=file,
        **of_engine(asked),
        limit=asked.limit,
        force=asked.force,
        log=asked.log,
        body=asked.body,
        folder=asked.job_dir,
        resume=asked.resume,
        order=asked.order,
        form=asked.input_format,
        shape=shape,
        strict=asked.strict,
        models=tuple(asked.served_model_name or ()),
        row_timeout_s=asked.row_timeout,
        max_errors=errors,
        error_file=asked.error_file,
        manifest=asked.manifest,
        output_form=form_of_output(output, asked.output_format),
        shard=parse_shard(asked.shard),
    )


def _answer(asked: ExecFlags, job: ExecJob, output: Path, mode: str, talk: Talk) -> Ended:
    """Runs the job under a display, until its end or a signal. output: as it was asked for; where
    it is standard output, the answers are printed as soon as they are there."""
    from batchgen.exec.run import execute

    to_stdout = str(output) == "-"
    stdout = sys.stdout  # while code of the user's may run that is another one
    profile = asked.profile
    predict = None if profile is None else predictor(profile, asked.expected_tokens, talk.say)
    with users_code(), stopped_by_signals() as stopping, ExitStack() as display:
        label = f"{asked.model.name or asked.model}, {asked.policy}"
        watch = display.enter_context(shown(mode, label))

        def deliver(_: Ended) -> None:
            if to_stdout:
                display.close()
                with redirect_stdout(stdout):
                    print_file(job.output)

        try:
            return execute(
                job,
                stopping=stopping,
                watch=watch,
                predict=predict,
                say=talk.say,
                deliver=deliver,
            )
        except Unfinished as error:
            if to_stdout and asked.job_dir is None:
                remedy = "give --job-dir or -o FILE to be able to go on"
                raise Unfinished(error.message, remedy=remedy, code=error.code) from None
            raise
        except KeyboardInterrupt:
            say_interrupted(asked.job_dir or default_folder(output), talk)
            raise
