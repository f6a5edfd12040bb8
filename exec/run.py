"""One job from its input file to its output file, on one device; it can stop and go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.errors import IllegalTransition, Unfinished, UserError
from batchgen.exec.answers import Answers
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.driver import Driver
from batchgen.exec.fingerprint import job_fingerprint
from batchgen.exec.hub import find_model
from batchgen.exec.job import ExecJob
from batchgen.exec.kept import KeptModel
from batchgen.exec.past import Past
from batchgen.exec.prepare import Prepared, check_job, prepare
from batchgen.exec.rows import Stage
from batchgen.exec.run_record import build_record
from batchgen.exec.saving import Saving
from batchgen.exec.templates import time_of_job
from batchgen.exec.watchdog import Watchdog
from batchgen.exec.watching import Watcher
from batchgen.job.board import Board, Tally
from batchgen.job.error_limit import TOO_MANY
from batchgen.job.final import write_final
from batchgen.job.fingerprint import file_digest
from batchgen.job.folder import JobFolder, check_resume, default_folder, open_folder
from batchgen.job.forecast import Forecast
from batchgen.job.inputs import form_of
from batchgen.job.output import bad_row_object, line_of
from batchgen.job.retry import failed_requests
from batchgen.job.rows import BadRow
from batchgen.job.snapshot import Snapshot
from batchgen.oneline import escaped
from batchgen.paths import check_new_output, check_output, shown_path
from batchgen.report.record import RunRecord


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
    watch: Callable[[Snapshot], None] | None = None,
    predict: Callable[[Prepared], Forecast] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Answer every row of the input; `on_line` gets each output line as it is known, those of
    earlier processes first. `kept` holds the model between jobs. `watch` is told how the job
    stands, a few times a second at most; `predict` says before the run what a simulator thinks of
    it. `say` gets lines that whoever runs it should know: that the run stands still.

    `stopping` is asked before every pass; where it says so, and when the disk refuses, the job
    stops in its folder (`ExecJob.folder`): Unfinished, and `resume` "always" goes on with it.
    `giving_up` is asked while the input is read: a job that is not resumed leaves no folder then.
    """
    began = time.perf_counter()
    check_output(job.output)  # first: a loop of links has no resolved form
    if job.error_file is not None and job.error_file.resolve() == job.input.resolve():
        raise UserError(f"{job.error_file} is the input", remedy="give another --error-file")
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
        if job.max_errors is not None:
            failed = earlier - folder.journal.counts().get("", 0)
            job.max_errors.check(failed, max(folder.num_rows, 0) or None, path)
        if on_line is not None:
            for line in folder.journal.lines("completion"):
                on_line(line)
        if earlier != folder.num_rows:
            calls = Callbacks(
                progress=progress,
                stopping=stopping or (lambda: False),
                on_line=on_line,
                watch=watch,
                predict=predict,
                giving_up=giving_up,
                say=say,
            )
            record = _run(job, model, folder, began, calls, kept)
            if folder.journal.num_answers() != folder.num_rows:
                _run(job, model, folder, began, replace(calls, predict=None), kept, alone=True)
        by_code = folder.journal.counts()
        if sum(by_code.values()) != folder.num_rows:
            raise IllegalTransition(f"{by_code} answers of {folder.num_rows} rows")
        digest = placed or write_final(
            job.output,
            folder.journal.lines(job.order),
            force=job.force,
            placing=lambda sha256: folder.note(output_sha256=sha256),
            form=job.output_form,
        )
        if job.error_file is not None:
            _write_failed(job, folder, job.error_file)
        folder.done()
        return Ended(
            record=record,
            by_code=by_code,
            earlier=earlier,
            manifest=_manifest(folder, by_code, digest),
        )


def _write_failed(job: ExecJob, folder: JobFolder, path: Path) -> None:
    """The requests of rows that failed, again and again the same: after a crash they are written
    over."""
    failed = set(np.flatnonzero(folder.journal.failed()).tolist())
    lines = failed_requests(job.input, form_of(job.input, job.form), failed)
    write_final(path, lines, force=job.force or path.is_file())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What `execute` was given to tell and to ask."""

    progress: Callable[[int, int, int], None] | None
    stopping: Callable[[], bool]
    on_line: Callable[[bytes], None] | None
    watch: Callable[[Snapshot], None] | None
    predict: Callable[[Prepared], Forecast] | None
    giving_up: Callable[[], bool]
    say: Callable[[str], None]


SHORT = "out_of_memory"


def _run(
    job: ExecJob,
    model: Path,
    folder: JobFolder,
    began: float,
    calls: Callbacks,
    kept: KeptModel | None,
    *,
    alone: bool = False,
) -> RunRecord | None:
    """Answers the rows that have no answer yet, into the journal. Those for which memory is short
    are set aside; `alone`: one row after the other, with all the memory there is, and those for
    which it is short still fail."""
    if alone:
        job = replace(job, overrides=(*job.overrides, ("plan.max_num_seqs", "1")))
    journal, limit = folder.journal, job.max_errors
    past = Past.of(journal, datetime.fromisoformat(folder.told["config"]["template_time"]))
    counts = journal.counts()
    tally = Tally(done=counts.get("", 0), failed=sum(counts.values()) - counts.get("", 0))
    earlier = tally.answered

    def keep(row: int, line: bytes, code: str) -> None:
        if code == SHORT and not alone:
            return
        tally.add(code)
        journal.answer(row, line, code)
        if calls.on_line is not None:
            calls.on_line(line)

    def refused(row: BadRow) -> None:
        keep(row.index, line_of(bad_row_object(row)), row.code)
        if limit is not None:
            limit.check(tally.failed, None, folder.path)

    try:
        prepared = prepare(job, kept=kept, past=past, on_bad=refused, giving_up=calls.giving_up)
    except UserError as error:
        # Nothing has run, and nothing stays behind, unless too many rows were refused: more may be.
        if not folder.is_resumed and error.code != TOO_MANY:
            folder.done()
        raise
    num_rows = prepared.read.num_rows
    folder.note(rows=num_rows)
    if limit is not None:
        limit.check(tally.failed, num_rows, folder.path)
    if not prepared.jobs:
        journal.sync()
        return None
    # A name, however the folder was spelt: "." has none.
    name = job.model.name if job.model.name.strip(".") else model.resolve().name
    answers = Answers(keep, prepared.tokenizer, escaped(name), folder.created)
    begun = prepared.produced or [0] * len(prepared.jobs)
    saving = Saving(journal, prepared.worker, prepared.jobs, begun)
    keeps_tokens = prepared.body is None  # what a body has seen and asked for is not kept
    forecast = None if calls.predict is None else calls.predict(prepared)
    board = Board(folder, calls.watch)
    watcher: Watcher | None = None

    def watched(driver: Driver) -> None:
        nonlocal watcher
        watcher = Watcher(
            driver,
            rows=num_rows,
            earlier=earlier,
            counts=tally.counts,
            tell=board.show,
            forecast=forecast,
        )

    def in_flight() -> list[str]:
        driver = None if watcher is None else watcher.driver
        rows = [] if driver is None else driver.in_flight()
        return [prepared.jobs[row].custom_id for row in rows]

    watchdog = Watchdog(calls.say, in_flight)

    def reported(now_ps: int, rows_done: int, rows_total: int) -> None:
        if keeps_tokens:
            saving.now_and_then()
        if watcher is not None:
            watcher.now_and_then(now_ps)
        if calls.progress is not None:
            calls.progress(now_ps, rows_done, rows_total)

    def ended(number: int, reason: str, why: str | None, stages: list[Stage]) -> None:
        answers.ended(prepared.jobs[number], reason, why, stages)

    def stopping() -> bool:
        watchdog.alive()
        return calls.stopping() or (limit is not None and limit.is_passed(tally.failed, num_rows))

    log = prepared.log() if job.log != "off" else None
    clock = WallClock()
    with watchdog:
        ran = drive(
            prepared,
            clock,
            log=log,
            progress=reported,
            on_row=ended,
            keep_tokens=False,
            stopping=stopping,
            begun=watched,
        )
    stopped = ran.driver.stopped
    if stopped and keeps_tokens:
        saving.save()
    journal.sync()
    assert watcher is not None
    board.end(watcher.look(clock.now_ps()), "stopped" if stopped else "finishing")
    watcher = None  # it holds the driver, and that the arenas
    if stopped:
        if limit is not None:
            limit.check(tally.failed, num_rows, folder.path)
        raise Unfinished(
            f"stopped: {tally.answered} of {num_rows} rows are answered, in {folder.path}",
            remedy="go on by the same command with --resume always",
            code="stopped",
        )
    return build_record(prepared, ran, time.perf_counter() - began, log)


def _plain(value: object) -> object:
    return shown_path(value) if isinstance(value, Path) else value
