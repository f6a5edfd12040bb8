"""Rows: every hazard of a JSONL file is an error row with a stable code; good rows stay good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.job.jsonl import BadLine, InputDigest, _no_duplicates, parse_object
from batchgen.job.rows import BATCH_ROWS, BadRow, JobRow, RowLimits, read_job


class ByteEncoder:
    """One token per byte; a conversation is the contents one after another. The model has no token
    for the bytes that no UTF-8 has."""

    vocab_size = 0xF8

    def encode(self, text: str) -> list[int]:
        return [0xFF if letter == "\0" else byte for letter in text for byte in letter.encode()]

    def encode_conversations(
        self, conversations: Sequence[list[dict[str, Any]]]
    ) -> list[list[int] | ValueError]:
        return [
            ValueError("no robots")
            if messages[0]["role"] == "robot"
            else self.encode("".join(message["content"] for message in messages))
            for messages in conversations
        ]


LIMITS = RowLimits(max_context=64, default_max_output=16)
GOOD = b'{"custom_id": "good", "prompt": "hi"}'


def read(path: Path, data: bytes, limits: RowLimits = LIMITS) -> list[JobRow | BadRow]:
    path.write_bytes(data)
    return read_job(path, ByteEncoder(), limits)


def chat(**body: Any) -> bytes:
    body = {"messages": [{"role": "user", "content": "hi"}]} | body
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode()


def parts(*content: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": content}])


BAD = {
    "invalid_utf8": [b'{"prompt": "\xff"}'],
    "invalid_json": [
        b"{",
        b"nonsense",
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"seed": ' + b"1" * 5000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a"} {"prompt": "b"}',
    ],
    "line_too_long": [b'{"prompt": "' + b"x" * 300_000 + b'"}'],
    "not_an_object": [b"[1]", b"null", b'"text"'],
    "missing_field": [
        b"{}",
        b'{"body": {"prompt": "a"}}',
        b'{"custom_id": "a", "body": {}}',
        b'{"custom_id": "a", "url": "/v1/completions"}',
    ],
    "invalid_field": [
        b'{"custom_id": 1, "prompt": "a"}',
        b'{"custom_id": true, "prompt": "a"}',
        b'{"custom_id": "", "prompt": "a"}',
        b'{"custom_id": "a", "body": [1]}',
        b'{"custom_id": "a", "method": "GET", "body": {"prompt": "a"}}',
        b'{"prompt": 5}',
        b'{"prompt": [1, 248]}',
        b'{"prompt": [true]}',
        b'{"prompt": ["a", "b"]}',
        b'{"messages": []}',
        b'{"messages": [{"content": "a"}]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"prompt": "a", "max_tokens": 0}',
        b'{"prompt": "a", "max_tokens": true}',
        b'{"prompt": "a", "max_tokens": 2.5}',
        b'{"prompt": "a", "temperature": -1}',
        b'{"prompt": "a", "temperature": "hot"}',
        b'{"prompt": "a", "top_p": 0}',
        b'{"prompt": "a", "seed": 1.5}',
        b'{"prompt": "a", "ignore_eos": 1}',
    ],
    "unsupported_url": [b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"prompt": "a"}}'],
    "unsupported_field": [
        chat(n=2),
        chat(stop=["x"]),
        chat(stream=True),
        chat(logprobs=True),
        chat(strange=1),
        b'{"prompt": "a", "n": true}',
        parts({"type": "image_url"}),
        parts({"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}, "text": "x"}),
        parts({"type": "text", "text": "a", "image_url": {}}),
        parts({"type": "text"}),
        parts({"type": None, "text": "x"}),
        parts({"text": "x"}),
        parts("x"),
    ],
    "token_out_of_vocabulary": [
        b'{"prompt": "a\\u0000"}',
        b'{"messages": [{"role": "user", "content": "\\u0000"}]}',
    ],
    "invalid_messages": [b'{"messages": [{"role": "robot", "content": "a"}]}'],
    "empty_prompt": [b'{"prompt": ""}', b'{"prompt": []}'],
    "context_length_exceeded": [
        b'{"prompt": "' + b"x" * 64 + b'"}',
        b'{"prompt": "' + b"x" * 60 + b'", "max_tokens": 5}',
    ],
    "duplicate_custom_id": [b'{"custom_id": "good", "prompt": "again"}'],
}
CASES = [(code, line) for code, lines in BAD.items() for line in lines]


@pytest.mark.parametrize(
    ("code", "line"), CASES, ids=[f"{c}-{i}" for i, (c, _) in enumerate(CASES)]
)
def test_a_bad_row_has_its_code_and_hurts_no_other(code: str, line: bytes, tmp_path: Path) -> None:
    after = b'{"custom_id": "after", "prompt": "hi"}'
    limits = RowLimits(max_context=64, default_max_output=16, max_line_bytes=250_000)
    rows = read(tmp_path / "in.jsonl", b"\n".join((GOOD, line, after)), limits)
    first, bad, last = rows
    assert isinstance(first, JobRow)
    assert isinstance(last, JobRow)
    assert isinstance(bad, BadRow)
    assert (bad.code, bad.index, bad.line) == (code, 1, 2)
    assert "\n" not in bad.message
    assert (first.custom_id, last.custom_id) == ("good", "after")
    assert first.prompt_ids == last.prompt_ids == (104, 105)


def test_the_openai_form_is_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    line = chat(
        model="m",
        messages=[{"role": "user", "content": parts}],
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        n=1,
        user="u",
    )
    (row,) = read(tmp_path / "in.jsonl", line)
    assert isinstance(row, JobRow)
    assert (row.kind, row.model, row.prompt_ids, row.max_output) == ("chat", "m", (104, 105), 7)
    assert (row.sampling.temperature, row.sampling.top_p, row.sampling.seed) == (0.5, 0.9, 3)


def test_the_short_form_may_have_columns_of_its_own(tmp_path: Path) -> None:
    short = b'{"prompt": [1, 2], "answer": "x"}'
    data = short + b'\r\n\n   \n{"id": "b", "messages": [{"role": "user", "content": "c"}]}'
    first, second = read(tmp_path / "in.jsonl", data)
    assert isinstance(first, JobRow)
    assert isinstance(second, JobRow)
    assert (first.custom_id, first.prompt_ids, first.max_output) == ("line-1", (1, 2), 16)
    assert first.sampling.greedy
    assert (second.custom_id, second.index, second.line, second.kind) == ("b", 1, 4, "chat")


def test_bom_and_unicode_line_separators_do_not_split_or_spoil(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c"
    data = b"\xef\xbb\xbf" + json.dumps({"prompt": text}, ensure_ascii=False).encode()
    (row,) = read(tmp_path / "in.jsonl", data)
    assert isinstance(row, JobRow)
    assert bytes(row.prompt_ids).decode() == text


def test_nothing_is_read_behind_the_limit(tmp_path: Path) -> None:
    """And the digest is that of the bytes that were read: all, without a limit that stops."""
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"prompt": "x" * (n % 7 + 1)}).encode() + b"\n" for n in range(200)]
    lines[3] = b"  \r\n"
    lines[5] = b"nonsense\n"
    lines[-1] = lines[-1].rstrip()
    path.write_bytes(b"".join(lines))
    everything = read_job(path, ByteEncoder(), LIMITS)
    for limit in (1, 4, 5, BATCH_ROWS, BATCH_ROWS + 1, 199, 500, None):
        digest = InputDigest()
        rows = read_job(path, ByteEncoder(), LIMITS, limit=limit, digest=digest)
        assert rows == everything[:limit]
        read_bytes = b"".join(lines[: rows[-1].line])
        assert digest.num_bytes == len(read_bytes)
        assert digest.hexdigest() == hashlib.sha256(read_bytes).hexdigest()


def test_the_digest_is_of_what_was_read_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    data = b"\xef\xbb\xbf" + GOOD + b"\n\n" + b"x" * 3_000_000 + b"\n[1]"
    path.write_bytes(data)
    digest = InputDigest()
    limits = RowLimits(max_context=64, max_line_bytes=100_000)
    assert len(read_job(path, ByteEncoder(), limits, digest=digest)) == 3
    path.write_bytes(b"other")
    assert (digest.num_bytes, digest.hexdigest()) == (len(data), hashlib.sha256(data).hexdigest())


def test_twice_the_same_key_is_found_in_linear_time() -> None:
    """Counted, not timed: each comparison of keys is one call."""
    calls = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal calls
            calls += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    pairs = [(Name(n), 0) for n in [*range(300), 299]]
    with pytest.raises(ValueError, match="key '299' appears twice"):
        _no_duplicates(pairs)
    assert calls < 10 * len(pairs)
    twice = parse_object(b'{"a": 1, "b": {"c": 1, "c": 2}}')
    assert isinstance(twice, BadLine)
    assert "'c' appears twice" in twice.message


def test_the_seed_depends_on_the_id_and_not_on_the_place(tmp_path: Path) -> None:
    one, two = (b'{"custom_id": "x", "prompt": "a"}', b'{"custom_id": "y", "prompt": "a"}')
    forward = read(tmp_path / "a.jsonl", one + b"\n" + two)
    backward = read(tmp_path / "b.jsonl", two + b"\n" + one)
    seeds = [
        {r.custom_id: r.sampling.seed for r in rows if isinstance(r, JobRow)}
        for rows in (forward, backward)
    ]
    assert seeds[0] == seeds[1]
    assert seeds[0]["x"] != seeds[0]["y"]


def test_no_rows_or_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows"):
        read(tmp_path / "in.jsonl", b"\n \n")
    with pytest.raises(UserError, match="cannot read"):
        read_job(tmp_path / "none.jsonl", ByteEncoder(), LIMITS)
    with pytest.raises(UserError, match="cannot read"):
        read_job(tmp_path, ByteEncoder(), LIMITS)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([GOOD, *(line for _, line in CASES if len(line) < 500)]),
        )
    )
)
def test_any_bytes_give_one_row_per_line_that_is_not_blank(
    tmp_path: Path, lines: list[bytes]
) -> None:
    data = b"\n".join(lines) + b"\n" + b'{"custom_id": "last", "prompt": "x"}'
    rows = read(tmp_path / "in.jsonl", data)
    pieces = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert len(rows) == sum(bool(piece.strip()) for piece in pieces)
    assert [row.index for row in rows] == list(range(len(rows)))
    last = rows[-1]
    assert isinstance(last, JobRow)
    ids = [row.custom_id for row in rows if isinstance(row, JobRow)]
    assert len(ids) == len(set(ids))
