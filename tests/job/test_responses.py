"""Requests and answers of OpenAI's responses API; the official client's types take the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_encoder import ByteEncoder

from batchgen.job.output import StageAnswer, answer_object
from batchgen.job.rows import BadRow, JobRow, RowLimits, read_job

LIMITS = RowLimits(max_context=64, default_max_output=16)


def row(tmp_path: Path, **body: Any) -> JobRow | BadRow:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    (found,) = read_job(tmp_path / "in.jsonl", ByteEncoder(), LIMITS)
    return found


def test_texts_and_messages(tmp_path: Path) -> None:
    found = row(tmp_path, input="hi", instructions="S", max_output_tokens=3, temperature=0.5)
    assert isinstance(found, JobRow)
    assert (found.kind, found.max_output, found.sampling.temperature) == ("response", 3, 0.5)
    assert bytes(found.prompt_ids) == b"Shi"
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    found = row(
        tmp_path, input=[{"role": "developer", "content": "D"}, {"role": "user", "content": parts}]
    )
    assert isinstance(found, JobRow)
    assert bytes(found.prompt_ids) == b"Dab"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_field"),
        ({"input": []}, "invalid_field"),
        ({"input": 5}, "invalid_field"),
        ({"input": "a", "instructions": 5}, "invalid_field"),
        ({"input": "a", "max_output_tokens": 0}, "invalid_field"),
        ({"input": "a", "previous_response_id": "x"}, "unsupported_field"),
        ({"input": "a", "text": {"format": {"type": "json_object"}}}, "unsupported_field"),
        ({"input": "a", "tools": [{"type": "function"}]}, "unsupported_field"),
        ({"input": "a", "messages": []}, "unsupported_field"),
        ({"input": [{"type": "function_call_output"}]}, "unsupported_field"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "unsupported_field"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "unsupported_field"),
        ({"input": [{"content": "x"}]}, "invalid_field"),
    ],
)
def test_what_is_not_done(body: dict[str, Any], code: str, tmp_path: Path) -> None:
    found = row(tmp_path, **body)
    assert isinstance(found, BadRow)
    assert found.code == code


def test_the_object_of_an_answer(tmp_path: Path) -> None:
    found = row(tmp_path, input="hi", max_output_tokens=3)
    assert isinstance(found, JobRow)
    for reason, status in (("stop", "completed"), ("length", "incomplete")):
        answer = StageAnswer(text="hey", completion_tokens=2, reason=reason)
        body = answer_object(found, [[answer]], model="m", created=5)["response"]["body"]
        assert (body["object"], body["created_at"], body["status"]) == ("response", 5, status)
        assert body["output"][0]["content"][0]["text"] == "hey"
        usage = body["usage"]
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (2, 2, 4)
        responses = pytest.importorskip("openai.types.responses")
        parsed = responses.Response.model_validate(body, strict=False)
        assert parsed.output_text == "hey"
