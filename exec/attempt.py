"""A process's part of a job: rows without an answer are read, run, and answered in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from batchgen.errors import Unfinished, UserError
from batchgen.exec.answers import Answers
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import Ran, drive
from batchgen.exec.driver import Driver
from batchgen.exec.job import ExecJob
from batchgen.exec.kept import KeptModel
from batchgen.exec.past import Past
from batchgen.exec.prepare import Prepared, prepare
from batchgen.exec.run_record import build_record
from batchgen.exec.saving import Saving
from batchgen.exec.watchdog import Watchdog
from batchgen.exec.watching import Watcher
from batchgen.job.board import Board, Tally
from batchgen.job.error_limit import TOO_MANY
from batchgen.job.fingerprint import input_print
from batchgen.job.folder import JobFolder
from batchgen.job.forecast import Forecast
from batchgen.job.jsonl import InputDigest
from batchgen.job.output import bad_row_object, line_of
from batchgen.job.rows import BadRow
from batchgen.job.snapshot import Snapshot
from batchgen.logbook import DecisionLog
from batchgen.logfile import LogFile
from batchgen.oneline import escaped
from batchgen.report.record import RunRecord

SHORT = "out_of_memory"


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


class Attempt:
    """Rows for which memory is short are set aside, without an answer; `alone`: one row after the
    other, with all the memory there is, and those for which it is short still fail."""

    def __init__(
        self,
        job: ExecJob,
        model: Path,
        folder: JobFolder,
        calls: Callbacks,
        kept: KeptModel | None,
        *,
        alone: bool = False,
    ) -> None:
        if alone:
            job = replace(job, overrides=(*job.overrides, ("plan.max_num_seqs", "1")))
        self._job, self._folder, self._calls = job, folder, calls
        self._journal, self._limit = folder.journal, job.max_errors
        self._kept, self._alone = kept, alone
        # A name, however the folder was spelt: "." has none.
        name = job.model.name if job.model.name.strip(".") else model.resolve().name
        self._name = escaped(name)
        counts = self._journal.counts()
        done = counts.get("", 0)
        self._tally = Tally(done=done, failed=sum(counts.values()) - done)
        self._earlier = self._tally.answered

    def run(self, began: float) -> RunRecord | None:
        """Until all rows that this attempt is for have an answer; None if none was left to run.
        `began`: when the job did, of `time.perf_counter`. Raises Unfinished where it is stopped."""
        prepared = self._prepare()
        self._folder.note(rows=prepared.read.num_rows)
        self._check_limit(prepared.read.num_rows)
        if not prepared.jobs:
            self._journal.sync()
            return None
        log: DecisionLog | None = None
        with ExitStack() as files:
            file: LogFile | None = None
            if self._job.log != "off":
                path = self._folder.log_path(alone=self._alone)
                file = files.enter_context(LogFile(path, self._calls.say))
                log = prepared.log(sink=file.write, keep=self._job.log != "auto")
                file.follow(log)
            ran = self._drive(prepared, log, file)
        if ran.driver.stopped:
            num_rows = prepared.read.num_rows
            self._check_limit(num_rows)
            raise Unfinished(
                f"stopped: {self._tally.answered} of {num_rows} rows are answered, in "
                f"{self._folder.path}",
                remedy="go on by the same command with --resume always",
                code="stopped",
            )
        log = log if self._job.log != "auto" else None
        return build_record(prepared, ran, time.perf_counter() - began, log)

    # -- before it runs ---------------------------------------------------------------------------

    def _prepare(self) -> Prepared:
        told = self._folder.told["config"]
        past = Past.of(self._journal, datetime.fromisoformat(told["template_time"]))
        try:
            prepared = prepare(
                self._job,
                kept=self._kept,
                past=past,
                on_bad=self._refuse,
                giving_up=self._calls.giving_up,
            )
            self._check_input(prepared.digest)
            return prepared
        except UserError as error:
            # Nothing has run, and nothing stays behind, unless too many rows were refused: more
            # may be.
            if not self._folder.is_resumed and error.code != TOO_MANY:
                self._folder.done()
            raise

    def _check_input(self, digest: InputDigest) -> None:
        """Raises UserError if other bytes were read than those that the job is known by."""
        read = input_print(digest.hexdigest(), digest.num_bytes)
        if self._job.limit is None and read != self._folder.told["fingerprint"]["input"]:
            raise UserError(
                f"{self._job.input} changed while it was read",
                remedy="give a file that nobody writes",
            )

    def _refuse(self, row: BadRow) -> None:
        self._keep(row.index, line_of(bad_row_object(row)), row.code)
        self._check_limit(None)

    def _keep(self, row: int, line: bytes, code: str) -> None:
        """The answer of a row of the input; `code` of its error, "" if it is none."""
        if code == SHORT and not self._alone:
            return
        self._tally.add(code)
        self._journal.answer(row, line, code)
        if self._calls.on_line is not None:
            self._calls.on_line(line)

    def _check_limit(self, num_rows: int | None) -> None:
        if self._limit is not None:
            self._limit.check(self._tally.failed, num_rows, self._folder.path)

    # -- while it runs ----------------------------------------------------------------------------

    def _drive(self, prepared: Prepared, log: DecisionLog | None, file: LogFile | None) -> Ran:
        """Answers come into the journal, tokens of unfinished rows too; watchers are told; `file`
        has what `log` hears."""
        calls, tally, limit = self._calls, self._tally, self._limit
        num_rows, jobs = prepared.read.num_rows, prepared.jobs
        answers = Answers(self._keep, prepared.tokenizer, self._name, self._folder.created)
        begun = prepared.produced or [0] * len(jobs)
        saving = Saving(self._journal, prepared.worker, jobs, begun)
        keeps_tokens = prepared.body is None  # what a body has seen and asked for is not kept
        forecast = None if calls.predict is None else calls.predict(prepared)
        board = Board(self._folder, calls.watch)
        watchers: list[Watcher] = []

        def watched(driver: Driver) -> None:
            watcher = Watcher(
                driver,
                rows=num_rows,
                earlier=self._earlier,
                counts=tally.counts,
                tell=board.show,
                forecast=forecast,
            )
            watchers.append(watcher)

        def in_flight() -> list[str]:
            return [jobs[row].custom_id for one in watchers for row in one.driver.in_flight()]

        def reported(now_ps: int, rows_done: int, rows_total: int) -> None:
            if keeps_tokens:
                saving.now_and_then()
            if file is not None:
                file.now_and_then()
            for watcher in watchers:
                watcher.now_and_then(now_ps)
            if calls.progress is not None:
                calls.progress(now_ps, rows_done, rows_total)

        def stopping() -> bool:
            watchdog.alive()
            return calls.stopping() or (
                limit is not None and limit.is_passed(tally.failed, num_rows)
            )

        clock = WallClock()
        with Watchdog(calls.say, in_flight) as watchdog:
            ran = drive(
                prepared,
                clock,
                log=log,
                progress=reported,
                on_row=lambda number, *end: answers.ended(jobs[number], *end),
                keep_tokens=False,
                stopping=stopping,
                begun=watched,
            )
        stopped = ran.driver.stopped
        if stopped and keeps_tokens:
            saving.save()
        self._journal.sync()
        state = "stopped" if stopped else "finishing"
        board.end(
            watchers.pop().look(clock.now_ps()), state
        )  # it holds the driver, and that arenas
        return ran
