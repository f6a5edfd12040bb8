"""One job from its input file to its output file, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchgen.exec.answers import Answers
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.exec.rows import Stage
from batchgen.exec.run_record import build_record
from batchgen.job.output import OutputWriter
from batchgen.job.rows import BadRow
from batchgen.oneline import escaped
from batchgen.report.record import RunRecord


def execute(
    job: ExecJob, *, progress: Callable[[int, int, int], None] | None = None
) -> tuple[RunRecord, dict[str, int]]:
    """Answer every row of the input; returns the record and counts of rows done and in error."""
    began = time.perf_counter()
    with OutputWriter(job.output, inputs=job.input, force=job.force) as writer:
        prepared = prepare(job)
        # A name, however the folder was spelt: "." has none.
        name = job.model.name if job.model.name.strip(".") else prepared.folder.resolve().name
        answers = Answers(writer, prepared.tokenizer, escaped(name))
        for row in prepared.rows:
            if isinstance(row, BadRow):
                answers.bad_row(row)

        def ended(number: int, reason: str, why: str | None, stages: list[Stage]) -> None:
            answers.ended(prepared.jobs[number], reason, why, stages)

        log = prepared.log() if job.log != "off" else None
        ran = drive(
            prepared, WallClock(), log=log, progress=progress, on_row=ended, keep_tokens=False
        )
        writer.commit(len(prepared.rows))
    record = build_record(prepared, ran, time.perf_counter() - began, log)
    return record, {"done": answers.done, "errors": answers.errors}
