"""Options of `batchgen exec` that can be refused before torch is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.errors import UserError
from batchgen.job.error_limit import check_row_timeout
from batchgen.job.final import OUTPUT_FORMS, form_of_name
from batchgen.job.targets import check_targets

if TYPE_CHECKING:
    from batchgen.cli.exec_flags import ExecFlags


def check_options(asked: ExecFlags) -> None:
    """Raises UserError that names the option and what it may be."""
    if asked.log not in ("auto", "off", "steps", "full"):
        raise UserError(f"--log is '{asked.log}'", remedy="choose one of auto, off, steps, full")
    if asked.log in ("steps", "full") and asked.out is None:
        raise UserError(f"--log {asked.log} has nowhere to go", remedy="add --out DIR")
    if asked.order not in ("input", "completion"):
        raise UserError(f"--order is '{asked.order}'", remedy="choose one of input, completion")
    if asked.max_tokens < 1:
        raise UserError(f"--max-tokens is {asked.max_tokens}", remedy="give at least 1")
    for name, value in (("limit", asked.limit), ("threads", asked.threads)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}", remedy="give at least 1")


def check_numbers(asked: ExecFlags) -> None:
    """Raises UserError for numbers that mean nothing."""
    price = asked.price_per_hour
    check_row_timeout(asked.row_timeout)
    if asked.expected_tokens is not None and asked.expected_tokens < 1:
        raise UserError(f"--expected-tokens is {asked.expected_tokens}", remedy="give at least 1")
    if price is not None and not (price >= 0 and math.isfinite(price)):
        raise UserError(f"--price-per-hour is {price:g}", remedy="give 0 or more")


def check_outputs(asked: ExecFlags) -> Path:
    """All that will be written can be; returns the output. Raises UserError before a long run, not
    after it."""
    output, out = asked.output, asked.out
    if output is None:
        raise UserError("--output is missing", remedy="give -o FILE, or --dry-run")
    if str(output) == "-":
        if asked.as_json:
            raise UserError("-o - and --json both print", remedy="leave one out")
        if asked.resume != "never" and asked.job_dir is None:
            raise UserError(
                f"-o - with --resume {asked.resume} keeps nothing", remedy="add --job-dir"
            )
    check_targets(
        output,
        resume=asked.resume,
        folder=asked.job_dir,
        force=asked.force,
        error_file=asked.error_file,
        manifest=asked.manifest,
        out=out,
    )
    if out is not None:
        from batchgen.report.rundir import check_target

        check_target(out, force=asked.force)
    return output


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
