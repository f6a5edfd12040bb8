"""Rows that ended become objects of the output file, with all their samples. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.exec.stops import ending_ids, said
from batchgen.job.logprobs import TokenLogprob, TokenText
from batchgen.job.output import (
    StageAnswer,
    answer_object,
    error_object,
    line_of,
)
from batchgen.job.rows import JobRow
from batchgen.job.samples import SamplesOfRows
from batchgen.runtime.cluster.obey import BODY

if TYPE_CHECKING:
    from batchgen.exec.logprobs import TokenLogprobs
    from batchgen.exec.rows import Stage
    from batchgen.exec.tokenizer import Tokenizer

ENDED_WELL = ("stop", "length", BODY)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a sample ended; `error` is a code and a message."""

    stages: list[StageAnswer]
    error: tuple[str, str] | None = None


Keep = Callable[[int, bytes, str], None]
"""Takes the output line of a row of the input (without its newline), and the code of its error."""


class Answers:
    """Gives one line per row of the input to `keep`. `done` and `errors` count them.

    `created`: Unix seconds that all answers carry: when the job was begun, whoever goes on with it.
    """

    def __init__(self, keep: Keep, tokenizer: Tokenizer, model_name: str, created: int = 0) -> None:
        self._keep = keep
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._created = created
        self._samples: SamplesOfRows[_Ended] = SamplesOfRows()
        self.done = 0
        self.errors = 0

    def ended(self, row: JobRow, reason: str, why: str | None, stages: Sequence[Stage]) -> None:
        """A sample that ran; `why` says what was wrong if it failed. A row is written when all its
        samples have ended, and fails with the first that did."""
        ours = self._samples.add(row, self._ended(row, reason, why, stages))
        if ours is None:
            return
        error = next((one.error for one in ours if one.error is not None), None)
        if error is not None:
            self.errors += 1
            line = line_of(error_object(row.index, row.custom_id, *error))
            self._keep(row.index, line, error[0])
            return
        self.done += 1
        value = answer_object(
            row, [one.stages for one in ours], model=self._model_name, created=self._created
        )
        self._keep(row.index, line_of(value), "")

    def _ended(self, row: JobRow, reason: str, why: str | None, stages: Sequence[Stage]) -> _Ended:
        if why is not None or reason not in ENDED_WELL:
            return _Ended([], (reason, why or f"row ended with {reason}"))
        return _Ended([self._answer(row, stage, stage.reason or reason) for stage in stages])

    def _answer(self, row: JobRow, stage: Stage, reason: str) -> StageAnswer:
        text, count = said(
            self._tokenizer.decode,
            stage.produced,
            ended_by_stop=reason == "stop",
            ending=ending_ids(row, self._tokenizer.eos_token_ids),
            stops=row.stop,
            min_tokens=row.sampling.min_tokens,
        )
        told = stage.logprobs
        return StageAnswer(
            follow_up=self._tokenizer.decode(stage.given),
            prompt_tokens=len(stage.given),
            text=text,
            completion_tokens=len(stage.produced),
            reason=reason,
            logprobs=None
            if told is None
            else [
                self._logprob(token, one)
                for token, one in zip(stage.produced[:count], told[:count], strict=True)
            ],
        )

    def _logprob(self, token: int, one: TokenLogprobs) -> TokenLogprob:
        return TokenLogprob(
            token=self._token(token),
            logprob=one.chosen,
            best=[(self._token(other), logprob) for other, logprob in one.best],
        )

    def _token(self, token: int) -> TokenText:
        return TokenText.of(self._tokenizer.token_bytes(token))
