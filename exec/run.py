"""One job from its input file to its output file, on one device; it can stop and go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from batchgen.errors import IllegalTransition, Unfinished, UserError
from batchgen.exec.answers import Answers
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.fingerprint import job_fingerprint
from batchgen.exec.hub import find_model
from batchgen.exec.job import ExecJob
from batchgen.exec.kept import KeptModel
from batchgen.exec.past import Past
from batchgen.exec.prepare import check_job, prepare
from batchgen.exec.rows import Stage
from batchgen.exec.run_record import build_record
from batchgen.exec.saving import Saving
from batchgen.exec.templates import time_of_job
from batchgen.job.final import write_final
from batchgen.job.fingerprint import file_digest
from batchgen.job.folder import JobFolder, check_resume, default_folder, open_folder
from batchgen.job.output import bad_row_object, line_of
from batchgen.job.rows import BadRow
from batchgen.oneline import escaped
from batchgen.paths import check_new_output, check_output, shown_path
from batchgen.report.record import RunRecord

STATUS_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job whose output is in place. `record`: of the rows that this process ran, None if an
    earlier one had answered all of them. `by_code`: answers by the code of their error, "" without
    one. `earlier`: rows that an earlier process had answered. `manifest`: JSON of the whole job."""

    record: RunRecord | None
    by_code: dict[str, int]
    earlier: int
    manifest: dict[str, Any]

    @property
    def rows(self) -> int:
        return int(self.manifest["rows"])

    @property
    def attempts(self) -> int:
        return int(self.manifest["attempts"])

    @property
    def output_sha256(self) -> str:
        return str(self.manifest["output_sha256"])

    @property
    def done(self) -> int:
        return self.by_code.get("", 0)

    @property
    def errors(self) -> int:
        return sum(self.by_code.values()) - self.done


def execute(
    job: ExecJob,
    *,
    progress: Callable[[int, int, int], None] | None = None,
    stopping: Callable[[], bool] | None = None,
    on_line: Callable[[bytes], None] | None = None,
    kept: KeptModel | None = None,
    giving_up: Callable[[], bool] = lambda: False,
) -> Ended:
    """Answer every row of the input; `on_line` gets each output line as it is known, those of
    earlier processes first. `kept` holds the model between jobs.

    `stopping` is asked before every pass; where it says so, and when the disk refuses, the job
    stops in its folder (`ExecJob.folder`): Unfinished, and `resume` "always" goes on with it.
    `giving_up` is asked while the input is read: a job that is not resumed leaves no folder then.
    """
    began = time.perf_counter()
    check_output(job.output)  # first: a loop of links has no resolved form
    path = default_folder(job.output) if job.folder is None else job.folder
    check_resume(path, job.resume, force=job.force)
    check_job(job)
    model = find_model(job.model)
    _check_apart(job, model)
    config = {key: _plain(value) for key, value in asdict(job).items()}
    config["template_time"] = time_of_job().isoformat()
    with open_folder(
        path,
        fingerprint=job_fingerprint(job, model),
        config=config,
        resume=job.resume,
        force=job.force,
    ) as folder:
        placed = _placed(job, folder)
        if not placed:
            check_new_output(job.output, force=job.force)
        record, earlier = None, folder.journal.num_answers()
        if on_line is not None:
            for line in folder.journal.lines("completion"):
                on_line(line)
        if earlier != folder.num_rows:
            record = _run(job, model, folder, began, progress, stopping, on_line, kept, giving_up)
        by_code = folder.journal.counts()
        if sum(by_code.values()) != folder.num_rows:
            raise IllegalTransition(f"{by_code} answers of {folder.num_rows} rows")
        digest = placed or write_final(
            job.output,
            folder.journal.lines(job.order),
            force=job.force,
            placing=lambda sha256: folder.note(output_sha256=sha256),
        )
        folder.done()
        return Ended(
            record=record,
            by_code=by_code,
            earlier=earlier,
            manifest=_manifest(folder, by_code, digest),
        )


def _manifest(folder: JobFolder, by_code: dict[str, int], digest: str) -> dict[str, Any]:
    """What was answered, from which input, by which processes."""
    done = by_code.get("", 0)
    return {
        "form": 1,
        "created": folder.created,
        "attempts": folder.attempts,
        "rows": folder.num_rows,
        "done": done,
        "failed": folder.num_rows - done,
        "failed_by_code": {code: count for code, count in by_code.items() if code},
        "output_sha256": digest,
        "fingerprint": folder.told["fingerprint"],
    }


def _check_apart(job: ExecJob, model: Path) -> None:
    """An output replaces neither its input, also not by another name of it, nor a model's file."""
    output = job.output.resolve()
    with suppress(OSError):
        if output.samefile(job.input):
            raise UserError(f"{job.output} is the input", remedy="give another output")
    for folder in {model.absolute(), model.resolve()}:
        if output.is_relative_to(folder):
            raise UserError(
                f"{job.output} lies in the folder of the model", remedy="give an output elsewhere"
            )


def _placed(job: ExecJob, folder: JobFolder) -> str:
    """The digest of the output if an earlier process has put it in place and then died."""
    noted = str(folder.told.get("output_sha256", ""))
    if noted and job.output.is_file() and file_digest(job.output)[0] == noted:
        return noted
    return ""


def _run(
    job: ExecJob,
    model: Path,
    folder: JobFolder,
    began: float,
    progress: Callable[[int, int, int], None] | None,
    stopping: Callable[[], bool] | None,
    on_line: Callable[[bytes], None] | None,
    kept: KeptModel | None,
    giving_up: Callable[[], bool],
) -> RunRecord | None:
    """Answers the rows that have no answer yet, into the journal."""
    journal = folder.journal
    past = Past.of(journal, datetime.fromisoformat(folder.told["config"]["template_time"]))
    bad = 0

    def keep(row: int, line: bytes, code: str) -> None:
        journal.answer(row, line, code)
        if on_line is not None:
            on_line(line)

    def refused(row: BadRow) -> None:
        nonlocal bad
        bad += 1
        keep(row.index, line_of(bad_row_object(row)), row.code)

    try:
        prepared = prepare(job, kept=kept, past=past, on_bad=refused, giving_up=giving_up)
    except UserError:
        if not folder.is_resumed:
            folder.done()  # nothing has run: it leaves nothing behind
        raise
    num_rows, earlier = prepared.read.num_rows, prepared.read.num_answered
    folder.note(rows=num_rows)
    # A name, however the folder was spelt: "." has none.
    name = job.model.name if job.model.name.strip(".") else model.resolve().name
    answers = Answers(keep, prepared.tokenizer, escaped(name), folder.created)
    if not prepared.jobs:
        journal.sync()
        return None
    begun = prepared.produced or [0] * len(prepared.jobs)
    saving = Saving(journal, prepared.worker, prepared.jobs, begun)
    keeps_tokens = prepared.body is None  # what a body has seen and asked for is not kept
    next_status_s = time.monotonic()

    def reported(now_ps: int, rows_done: int, rows_total: int) -> None:
        nonlocal next_status_s
        if keeps_tokens:
            saving.now_and_then()
        if time.monotonic() >= next_status_s:
            next_status_s = time.monotonic() + STATUS_S
            ours = earlier + answers.done, bad + answers.errors
            folder.status(_status(*ours, num_rows, now_ps))
        if progress is not None:
            progress(now_ps, rows_done, rows_total)

    def ended(number: int, reason: str, why: str | None, stages: list[Stage]) -> None:
        answers.ended(prepared.jobs[number], reason, why, stages)

    log = prepared.log() if job.log != "off" else None
    ran = drive(
        prepared,
        WallClock(),
        log=log,
        progress=reported,
        on_row=ended,
        keep_tokens=False,
        stopping=stopping,
    )
    if ran.driver.stopped:
        if keeps_tokens:
            saving.save()
        journal.sync()
        have = earlier + bad + answers.done + answers.errors
        raise Unfinished(
            f"stopped: {have} of {num_rows} rows are answered, in {folder.path}",
            remedy="go on by the same command with --resume always",
            code="stopped",
        )
    journal.sync()
    return build_record(prepared, ran, time.perf_counter() - began, log)


def _status(done: int, failed: int, num_rows: int, now_ps: int) -> dict[str, Any]:
    return {
        "state": "running",
        "rows": num_rows,
        "done": done,
        "failed": failed,
        "elapsed_s": round(now_ps / 1e12, 3),
        "updated": round(time.time(), 3),
    }


def _plain(value: object) -> object:
    return shown_path(value) if isinstance(value, Path) else value
