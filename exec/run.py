"""One job from its input file to its output file, on one device; it can stop and go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.errors import IllegalTransition, Unfinished, UserError
from batchgen.exec.attempt import Attempt, Callbacks
from batchgen.exec.fingerprint import job_fingerprint
from batchgen.exec.hub import find_model
from batchgen.exec.job import ExecJob
from batchgen.exec.kept import KeptModel
from batchgen.exec.prepare import Prepared, check_job
from batchgen.exec.templates import time_of_job
from batchgen.job.final import write_final
from batchgen.job.fingerprint import file_digest
from batchgen.job.folder import JobFolder, check_resume, default_folder, logs_in, open_folder
from batchgen.job.forecast import Forecast
from batchgen.job.inputs import form_of
from batchgen.job.retry import failed_requests
from batchgen.job.snapshot import Snapshot
from batchgen.paths import check_new_output, check_output, real_path, shown_path
from batchgen.report.record import RunRecord
from batchgen.report.rundir import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job whose output is in place. `record`: of the rows that this process ran, None if an
    earlier one had answered all of them. `by_code`: answers by the code of their error, "" without
    one. `earlier`: rows that an earlier process had answered. `manifest`: JSON of the whole job.
    `earlier_logs`: where decisions are kept, packed logs beside that of `record`, by file name."""

    record: RunRecord | None
    by_code: dict[str, int]
    earlier: int
    manifest: dict[str, Any]
    earlier_logs: dict[str, bytes] = field(default_factory=dict)

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
    deliver: Callable[[Ended], None] = lambda ended: None,
) -> Ended:
    """Answer every row of the input; `on_line` gets each output line as it is known, those of
    earlier processes first. `kept` holds the model between jobs. `watch` is told how the job
    stands, a few times a second at most; `predict` says before the run what a simulator thinks of
    it. `say` gets lines that whoever runs it should know: that the run stands still. `deliver` is
    called when the output is in place and the job's folder still is: where it raises, `resume`
    "always" does that part again.

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
            record = Attempt(job, model, folder, calls, kept).run(began)
            if folder.journal.num_answers() != folder.num_rows:
                calls = replace(calls, predict=None)
                Attempt(job, model, folder, calls, kept, alone=True).run(began)
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
        ended = Ended(
            record=record,
            by_code=by_code,
            earlier=earlier,
            manifest=_manifest(folder, by_code, digest),
            earlier_logs=_earlier_logs(folder) if job.log in ("steps", "full") else {},
        )
        if job.manifest is not None:
            _write_manifest(job.manifest, ended.manifest)
        deliver(ended)
        folder.done()
        return ended


def _earlier_logs(folder: JobFolder) -> dict[str, bytes]:
    """The logs of other processes, and of rows that ran alone. What cannot be read is left out."""
    found = {}
    for path in logs_in(folder.path):
        with suppress(OSError):
            if path != folder.log_path():
                found[path.name] = path.read_bytes()
    return found


def _write_failed(job: ExecJob, folder: JobFolder, path: Path) -> None:
    """The requests of rows that failed, again and again the same: after a crash they are written
    over."""
    failed = set(np.flatnonzero(folder.journal.failed()).tolist())
    lines = failed_requests(job.input, form_of(job.input, job.form), failed)
    write_final(path, lines, force=job.force or path.is_file())


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    try:
        write_json(path, manifest)
    except OSError as error:
        raise Unfinished(
            f"cannot write {path}: {error.strerror}",
            remedy="make room, then go on with --resume always",
        ) from None


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
    """What is written replaces neither the input, also not by another name of it, nor a model's
    file."""
    for name, path in (
        ("output", job.output),
        ("--error-file", job.error_file),
        ("--manifest", job.manifest),
    ):
        if path is None:
            continue
        place = real_path(path)
        with suppress(OSError):
            if place.samefile(job.input):
                raise UserError(f"{path} is the input", remedy=f"give another {name}")
        if any(place.is_relative_to(folder) for folder in (model.absolute(), real_path(model))):
            raise UserError(
                f"{path} lies in the folder of the model", remedy=f"give another {name}"
            )


def _placed(job: ExecJob, folder: JobFolder) -> str:
    """The digest of the output if an earlier process has put it in place and then died."""
    noted = str(folder.told.get("output_sha256", ""))
    if noted and job.output.is_file() and file_digest(job.output)[0] == noted:
        return noted
    return ""


def _plain(value: object) -> object:
    return shown_path(value) if isinstance(value, Path) else value
