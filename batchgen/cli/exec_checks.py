"""Options of `batchgen exec` that can be refused before torch is loaded."""

from __future__ import annotations

import math
from pathlib import Path

from batchgen.errors import UserError
from batchgen.job.error_limit import check_row_timeout
from batchgen.job.final import OUTPUT_FORMS, form_of_name
from batchgen.job.folder import JOB, default_folder
from batchgen.paths import check_new_output, check_output, check_result, real_path


def check_options(
    *,
    log: str,
    out: Path | None,
    order: str,
    max_tokens: int,
    limit: int | None,
    threads: int | None,
) -> None:
    """Raises UserError that names the option and what it may be."""
    if log not in ("auto", "off", "steps", "full"):
        raise UserError(f"--log is '{log}'", remedy="choose one of auto, off, steps, full")
    if log in ("steps", "full") and out is None:
        raise UserError(f"--log {log} has nowhere to go", remedy="add --out DIR")
    if order not in ("input", "completion"):
        raise UserError(f"--order is '{order}'", remedy="choose one of input, completion")
    if max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}", remedy="give at least 1")
    for name, value in (("limit", limit), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}", remedy="give at least 1")


def check_numbers(
    *, row_timeout: float | None, expected_tokens: int | None, price_per_hour: float | None
) -> None:
    """Raises UserError for numbers that mean nothing."""
    check_row_timeout(row_timeout)
    if expected_tokens is not None and expected_tokens < 1:
        raise UserError(f"--expected-tokens is {expected_tokens}", remedy="give at least 1")
    if price_per_hour is not None and not (price_per_hour >= 0 and math.isfinite(price_per_hour)):
        raise UserError(f"--price-per-hour is {price_per_hour:g}", remedy="give 0 or more")


def check_outputs(
    output: Path | None,
    *,
    resume: str,
    job_dir: Path | None,
    force: bool,
    as_json: bool,
    error_file: Path | None,
    manifest: Path | None,
    out: Path | None,
) -> None:
    """All that will be written can be: raises UserError before a long run, not after it."""
    if output is None:
        raise UserError("--output is missing", remedy="give -o FILE, or --dry-run")
    if str(output) == "-":
        if as_json:
            raise UserError("-o - and --json both print", remedy="leave one out")
        if resume != "never" and job_dir is None:
            raise UserError(f"-o - with --resume {resume} keeps nothing", remedy="add --job-dir")
    else:
        check_output(output)
        if resume == "never":
            check_new_output(output, force=force)
    begun = (default_folder(output) if job_dir is None else job_dir) / JOB
    goes_on = resume == "always" or (resume == "if-possible" and begun.is_file())
    for path in (error_file, manifest):
        # A killed process may have left them: who goes on replaces its own.
        if path is not None:
            check_result(path, force=force or goes_on)
            if real_path(output) == real_path(path):
                raise UserError(f"{path} is the output", remedy="give another file")
    if error_file and manifest and real_path(error_file) == real_path(manifest):
        raise UserError(f"{manifest} is the --error-file too", remedy="give another --manifest")
    if job_dir is not None or str(output) != "-":
        own = real_path(begun.parent)
        for path in (output, error_file, manifest, out):
            if path is not None and real_path(path).is_relative_to(own):
                raise UserError(f"{path} lies in the folder of the job", remedy="give another name")
    if out is not None:
        if real_path(out) == real_path(output):
            raise UserError(f"{out} is the output", remedy="give another --out")
        from batchgen.report.rundir import check_target

        check_target(out, force=force)


def form_of_output(output: Path, wanted: str) -> str:
    """ "jsonl" or "parquet": as said, else by the name. Raises UserError."""
    if wanted == "auto":
        return form_of_name(output)
    if wanted not in OUTPUT_FORMS:
        raise UserError(
            f"--output-format is '{wanted}'",
            remedy=f"choose one of auto, {', '.join(OUTPUT_FORMS)}",
        )
    return wanted
