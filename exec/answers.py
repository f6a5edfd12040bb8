"""Rows that ended become objects of the output file. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchgen.job.output import (
    OutputWriter,
    StageAnswer,
    answer_object,
    bad_row_object,
    error_object,
)
from batchgen.job.rows import BadRow, JobRow
from batchgen.runtime.cluster.obey import BODY

if TYPE_CHECKING:
    from batchgen.exec.rows import Stage
    from batchgen.exec.tokenizer import Tokenizer

ENDED_WELL = ("stop", "length", BODY)


class Answers:
    """Writes one object per row. `done` and `errors` count what has been written.

    `created`: Unix seconds that all answers carry. 0 unless the caller has a time that belongs to
    the job: the time of day would give the same answers other bytes in every run.
    """

    def __init__(
        self, writer: OutputWriter, tokenizer: Tokenizer, model_name: str, created: int = 0
    ) -> None:
        self._writer = writer
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._created = created
        self.done = 0
        self.errors = 0

    def bad_row(self, row: BadRow) -> None:
        """A row that could not be read."""
        self.errors += 1
        self._writer.write(row.index, bad_row_object(row))

    def ended(self, row: JobRow, reason: str, why: str | None, stages: Sequence[Stage]) -> None:
        """A row that ran; `why` says what was wrong if it failed."""
        if why is not None or reason not in ENDED_WELL:
            self.errors += 1
            message = why or f"row ended with {reason}"
            self._writer.write(row.index, error_object(row.index, row.custom_id, reason, message))
            return
        self.done += 1
        answers = [self._answer(stage, stage.reason or reason) for stage in stages]
        value = answer_object(row, answers, model=self._model_name, created=self._created)
        self._writer.write(row.index, value)

    def _answer(self, stage: Stage, reason: str) -> StageAnswer:
        said = stage.produced[:-1] if reason == "stop" else stage.produced
        return StageAnswer(
            follow_up=self._tokenizer.decode(stage.given),
            prompt_tokens=len(stage.given),
            text=self._tokenizer.decode(said),
            completion_tokens=len(stage.produced),
            reason=reason,
        )
