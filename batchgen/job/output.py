"""The output lines of a job: OpenAI batch objects. Nothing here depends on the time of day, so that
the same answers give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchgen.job.logprobs import TokenLogprob, chat_logprobs, completion_logprobs
from batchgen.job.responses import response_body
from batchgen.job.rows import BadRow, JobRow


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
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": produced_tokens,
        "total_tokens": prompt_tokens + produced_tokens,
    }
    name = row.model or model
    if row.kind == "response":
        texts = [(stages[-1].text, stages[-1].reason == "length") for stages in samples]
        body = response_body(row.index, created, name, texts, usage)
    else:
        body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{row.index}",
            "object": "chat.completion" if chat else "text_completion",
            "created": created,
            "model": name,
            "choices": [_choice(number, stages[-1], chat) for number, stages in enumerate(samples)],
            "usage": usage,
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


def error_object(
    index: int,
    custom_id: str | None,
    code: str,
    message: str,
    numbers: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The output object of a row without an answer; `numbers` stand beside the message, by name."""
    return {
        "id": f"batch_req_{index}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message, **(numbers or {})},
    }


def bad_row_object(row: BadRow) -> dict[str, Any]:
    """The output object of a row that could not be read; the message names its line."""
    message = f"line {row.line}: {row.message}"
    return error_object(row.index, row.custom_id, row.code, message, row.numbers)


def line_of(value: dict[str, Any]) -> bytes:
    """An output object as a line, without its newline."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8")
