"""Output objects: OpenAI's shape."""

from __future__ import annotations

from batchgen.job.logprobs import TokenLogprob, TokenText
from batchgen.job.output import StageAnswer, answer_object, bad_row_object
from batchgen.job.rows import BadRow, JobRow
from batchgen.job.sampling import Sampling


def row(index: int, kind: str = "chat") -> JobRow:
    return JobRow(
        index=index,
        line=index + 1,
        custom_id=f"c{index}",
        kind=kind,
        model=None,
        prompt_ids=(1, 2, 3),
        max_output=5,
        sampling=Sampling(),
        ignore_eos=False,
    )


def test_objects_have_the_openai_shape() -> None:
    hey = StageAnswer(text="hey", completion_tokens=2, reason="stop")
    value = answer_object(row(4), [[hey]], model="m")
    body = value["response"]["body"]
    assert value["custom_id"] == "c4"
    assert value["error"] is None
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hey"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert "batchgen" not in body
    short = StageAnswer(text="t", completion_tokens=1, reason="length")
    text = answer_object(row(0, "completion"), [[short]], model="m")
    assert text["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert text["response"]["body"]["choices"][0]["text"] == "t"
    more = StageAnswer(
        text="t", completion_tokens=1, reason="body", follow_up="and?", prompt_tokens=4
    )
    body = answer_object(row(4), [[hey, more]], model="m")["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "t"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert [stage["prompt_tokens"] for stage in body["batchgen"]["stages"]] == [3, 4]
    assert [stage["finish_reason"] for stage in body["batchgen"]["stages"]] == ["stop", "body"]
    body = answer_object(row(4), [[hey], [short], [hey, more]], model="m")["response"]["body"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [c["message"]["content"] for c in body["choices"]] == ["hey", "t", "t"]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert [len(choice["stages"]) for choice in body["batchgen"]["choices"]] == [1, 1, 2]
    bad = bad_row_object(BadRow(index=1, line=2, custom_id=None, code="invalid_json", message="x"))
    assert bad["response"] is None
    assert bad["error"] == {"code": "invalid_json", "message": "line 2: x"}


def test_log_probabilities_have_the_openai_shape() -> None:
    """A token of half a character, and the offsets of a text in characters."""
    word, half, rest = (TokenText.of(data) for data in (b"hi", b"\xc3", b"\xa9!"))
    tokens = [
        TokenLogprob(token=word, logprob=-0.5, best=[(word, -0.5), (half, -2.0)]),
        TokenLogprob(token=half, logprob=-3.0, best=[(word, -0.1)]),
        TokenLogprob(token=rest, logprob=float("-inf"), best=[]),
    ]
    answer = StageAnswer(text="hi\u00e9!", completion_tokens=3, reason="length", logprobs=tokens)
    chat = answer_object(row(0), [[answer]], model="m")["response"]["body"]["choices"][0][
        "logprobs"
    ]
    assert chat["content"][0] == {
        "token": "hi",
        "logprob": -0.5,
        "bytes": [104, 105],
        "top_logprobs": [
            {"token": "hi", "logprob": -0.5, "bytes": [104, 105]},
            {"token": "bytes:\\xc3", "logprob": -2.0, "bytes": [0xC3]},
        ],
    }
    assert [one["bytes"] for one in chat["content"]] == [[104, 105], [0xC3], [0xA9, 33]]
    value = answer_object(row(0, "completion"), [[answer]], model="m")
    text = value["response"]["body"]["choices"][0]["logprobs"]
    assert text["tokens"] == ["hi", "bytes:\\xc3", "bytes:\\xa9\\x21"]
    assert text["token_logprobs"] == [-0.5, -3.0, -9999.0]
    assert text["top_logprobs"] == [
        {"hi": -0.5, "bytes:\\xc3": -2.0},
        {"hi": -0.1, "bytes:\\xc3": -3.0},
        {},
    ]
    assert text["text_offset"] == [0, 2, 2]
