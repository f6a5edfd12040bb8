"""The output file of a job: OpenAI batch objects in input order, put in place by one rename.

Until `commit` the final name does not exist (or keeps its old file). Nothing here depends on the
time of day, so that the same answers give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchgen.errors import UserError
from batchgen.job.logprobs import TokenLogprob, chat_logprobs, completion_logprobs
from batchgen.job.placing import NotPlaced, place
from batchgen.job.rows import BadRow, JobRow
from batchgen.paths import check_new_output, check_output, remove, temporary_name


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAnswer:
    """One stage of a row: the follow-up that began it (none in the first), and its answer.

    `completion_tokens` counts the stop token; reason: "stop", "length", or "body" when the row's
    body went on or ended before. `logprobs`: of the tokens of `text`, if the row asked for them.
    """

    text: str
    completion_tokens: int
    reason: str
    follow_up: str = ""
    prompt_tokens: int = 0
    logprobs: Sequence[TokenLogprob] | None = None


def answer_object(
    row: JobRow, samples: Sequence[Sequence[StageAnswer]], *, model: str, created: int = 0
) -> dict[str, Any]:
    """The output object of a finished row, from the stages of each of its samples; `created` is
    Unix seconds, one value for a whole job (0: no time, which clients read as an integer like any
    other).

    An answer is that of the last stage; usage counts the prompt once and all stages of all samples,
    follow-ups as prompt tokens. Rows of several stages have them all under "batchgen", which
    OpenAI's object does not have.
    """
    chat = row.kind == "chat"
    every = [stage for stages in samples for stage in stages]
    prompt_tokens = len(row.prompt_ids) + sum(stage.prompt_tokens for stage in every)
    produced_tokens = sum(stage.completion_tokens for stage in every)
    body: dict[str, Any] = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{row.index}",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": row.model or model,
        "choices": [_choice(number, stages[-1], chat) for number, stages in enumerate(samples)],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": produced_tokens,
            "total_tokens": prompt_tokens + produced_tokens,
        },
    }
    if any(len(stages) > 1 or stages[-1].reason == "body" for stages in samples):
        shown = [[_stage_object(row, stage) for stage in stages] for stages in samples]
        body["batchgen"] = (
            {"stages": shown[0]}
            if len(shown) == 1
            else {"choices": [{"index": i, "stages": x} for i, x in enumerate(shown)]}
        )
    return {
        "id": f"batch_req_{row.index}",
        "custom_id": row.custom_id,
        "response": {"status_code": 200, "request_id": f"req_{row.index}", "body": body},
        "error": None,
    }


def _choice(index: int, last: StageAnswer, chat: bool) -> dict[str, Any]:
    # A row that its body ended has no reason among OpenAI's; it ended as by a stop sequence.
    finish_reason = "length" if last.reason == "length" else "stop"
    if chat:
        content: dict[str, Any] = {"message": {"role": "assistant", "content": last.text}}
        logprobs = None if last.logprobs is None else chat_logprobs(last.logprobs)
    else:
        content = {"text": last.text}
        logprobs = None if last.logprobs is None else completion_logprobs(last.logprobs)
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}


def _stage_object(row: JobRow, stage: StageAnswer) -> dict[str, Any]:
    return {
        "follow_up": stage.follow_up,
        "text": stage.text,
        "prompt_tokens": stage.prompt_tokens or len(row.prompt_ids),
        "completion_tokens": stage.completion_tokens,
        "finish_reason": stage.reason,
    }


def error_object(index: int, custom_id: str | None, code: str, message: str) -> dict[str, Any]:
    """The output object of a row without an answer."""
    return {
        "id": f"batch_req_{index}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


def bad_row_object(row: BadRow) -> dict[str, Any]:
    """The output object of a row that could not be read; the message names its line."""
    return error_object(row.index, row.custom_id, row.code, f"line {row.line}: {row.message}")


class OutputWriter:
    """Collects one object per row, in any order, and writes them in input order.

    Objects that come early wait in memory until their turn. Leaving the context without `commit`
    removes the temporary file, unless the disk or the name failed: then the error names the file
    that holds the answers. Raises UserError when `path` exists and `force` is not set or is the
    input itself, and on entering when it cannot be written.
    """

    def __init__(self, path: Path, *, inputs: Path | None = None, force: bool = False) -> None:
        self.path = Path(path)
        check_output(self.path)  # first: a loop of links has no resolved form
        if inputs is not None and self.path.resolve() == Path(inputs).resolve():
            raise UserError(f"{path} is the input", remedy="give another output")
        check_new_output(self.path, force=force)
        self._temporary = temporary_name(self.path)
        self._waiting: dict[int, bytes] = {}
        self._force = force
        self._keep = False
        self.num_written = 0

    def write(self, index: int, value: dict[str, Any]) -> None:
        """Take the object of row `index`; each row once. Raises UserError if the disk is full."""
        if index < self.num_written or index in self._waiting:
            raise ValueError(f"row {index} has an output already")
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._waiting[index] = line.encode("utf-8") + b"\n"
        with self._keeping():
            while self.num_written in self._waiting:
                self._file.write(self._waiting.pop(self.num_written))
                self.num_written += 1

    def commit(self, num_rows: int) -> None:
        """Put the file in place, durably. Raises ValueError if a row of `num_rows` is missing, and
        UserError, which names the file that holds the answers, if that cannot be done."""
        if self._waiting or self.num_written != num_rows:
            raise ValueError(f"row {self.num_written} of {num_rows} has no output")
        with self._keeping():
            self._file.flush()
            os.fsync(self._file.fileno())
        try:
            place(self._file, self._temporary, self.path, force=self._force)
        except NotPlaced:
            self._keep = True
            raise

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """What the disk refuses costs no answer that it has taken."""
        try:
            yield
        except OSError as error:
            self._keep = True
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; "
                f"the answers that could be written are in {self._temporary}",
                remedy="make room, then run again",
            ) from None

    def __enter__(self) -> Self:
        try:
            self._file = self._temporary.open("x+b")  # read again if its name is taken away
            return self
        except OSError as error:
            why = f"cannot write {self.path}: {error.strerror}"
            raise UserError(why, remedy="check it") from None
        except BaseException:  # a signal while the file was being made
            remove(self._temporary)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with suppress(OSError):  # closing writes what a full disk has refused once
                self._file.close()
        finally:
            if not self._keep:
                remove(self._temporary)
