"""What `batchgen exec` says and writes when the answers are in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.cli.common import print_runs_json, print_table
from batchgen.cli.live import Talk, event
from batchgen.job.folder import JOB

if TYPE_CHECKING:
    from batchgen.exec.run import Ended


def say_ended(ended: Ended, output: Path, error_file: Path | None, talk: Talk) -> None:
    """Said first: the answers are there, whatever becomes of the run directory."""
    record = ended.record
    if record is not None:
        if remark := record.config["kernels_remark"]:
            talk.say(f"note: attention and experts ran in torch, which is slower: {remark}")
        for name, count in record.config["unknown_fields"].items():
            talk.say(f"note: field '{name:.60}' of {count} rows is not known and was ignored")
    where = "standard output" if str(output) == "-" else str(output)
    if talk.as_json:
        event("end", output=where, earlier=ended.earlier, **ended.manifest)
        return
    earlier = f", {ended.earlier} of them earlier" if ended.earlier else ""
    talk.say(f"wrote {where}: {ended.done} rows answered, {ended.errors} error rows{earlier}")
    if ended.errors:
        codes = ", ".join(f"{code} {n}" for code, n in ended.by_code.items() if code)
        talk.say(f"errors by code: {codes}{_again(ended.errors, error_file)}")


def _again(errors: int, error_file: Path | None) -> str:
    """Where requests of failed rows are. A broken row of a table or an overlong line has none."""
    if error_file is None:
        return ""
    with error_file.open("rb") as file:
        found = sum(1 for _ in file)
    if found >= errors:
        return f"; their requests are in {error_file}"
    rest = f"{errors - found} have none that could be copied: mend them in the input"
    return f"; the requests of {found} are in {error_file}, {rest}"


def say_interrupted(folder: Path, talk: Talk) -> None:
    """Before the first pass a signal ends a job at once: whether anything is kept."""
    if (folder / JOB).is_file():
        talk.say(f"what is answered is in {folder}: go on by the same command with --resume always")
    else:
        talk.say("no row has run and nothing is kept: the same command begins anew")


def report(ended: Ended, out: Path | None, *, force: bool, as_json: bool, quiet: bool) -> None:
    """The run directory, and the table or JSON of the run; of no run where an earlier process had
    answered all rows."""
    if ended.record is None:
        if as_json:
            print_runs_json([])
        return
    if out is not None:
        from batchgen.report.rundir import write_run

        summary = write_run(
            ended.record,
            out,
            force=force,
            more={"manifest.json": ended.manifest},
            files=ended.earlier_logs,
        )
    else:
        from batchgen.report.metrics import summary as summarise

        summary = summarise(ended.record)
    if as_json:
        print_runs_json([summary])
    elif not quiet:
        print_table([summary])
