"""Rows: every hazard of a JSONL file is an error row with a stable code; good rows stay good."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from byte_encoder import ByteEncoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.job.jsonl import BadLine, InputDigest, _no_duplicates, parse_object
from batchgen.job.output import bad_row_object, line_of
from batchgen.job.rows import BATCH_ROWS, BadRow, JobRow, RowLimits, read_job, read_rows
from batchgen.job.samples import SamplesOfRows, samples
from batchgen.job.sampling import Sampling, SamplingDefaults

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


# Below, above and beside what each option may be.
BAD_VALUES: dict[str, list[Any]] = {
    "temperature": [-0.1, 100.5, True, "1"],
    "top_p": [0, 1.01, [1]],
    "top_k": [-2, 1.0, "5"],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, 101],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1, False],
    "n": [0, 129, 2.0],
    "stop": ["", [""], ["a"] * 5, [1], 1, "x" * 1001, "\ufffd", {"a": 1}],
    "stop_token_ids": [5, [-1], [0xF8], [True], [0] * 65],
    "min_tokens": [-1, 17, 1.5],
    "logprobs": [1, "true"],
    "top_logprobs": [1, 21, -1],
    "logit_bias": [[1], {"a": 1}, {"248": 1}, {"1": 101}, {"1": -101}, {"1": None}, {"-1": 1}],
}

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
        b'{"prompt": "a", "model": 5}',
        b'{"prompt": "a", "n": true}',
        b'{"prompt": "a", "logprobs": true}',
        b'{"prompt": "a", "top_logprobs": 2}',
        *(chat(**{name: value}) for name, values in BAD_VALUES.items() for value in values),
    ],
    "unsupported_url": [b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"prompt": "a"}}'],
    "unsupported_field": [
        chat(stream=True),
        chat(best_of=2),
        chat(response_format={"type": "json_object"}),
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


@given(
    size=st.integers(1, 130),
    name=st.sampled_from(["max_tokens", "max_completion_tokens"]),
    given_tokens=st.none() | st.integers(1, 130) | st.sampled_from([2**63 - 1, 2**63, 10**40]),
)
def test_a_row_that_is_too_long_says_so_in_numbers(
    size: int, name: str, given_tokens: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    row: dict[str, Any] = {"prompt": "x" * size}
    if given_tokens is not None:
        row[name] = given_tokens
    limits = RowLimits(max_context=64, default_max_output=16)
    folder = tmp_path_factory.mktemp("long")
    (found,) = read(folder / "in.jsonl", json.dumps(row).encode(), limits)
    fits = size < 64 and size + (given_tokens or 0) <= 64
    assert isinstance(found, JobRow) is fits
    if isinstance(found, BadRow):
        numbers = {"limit": 64, "prompt_tokens": size}
        if given_tokens is not None and given_tokens < 2**63:
            numbers["max_tokens"] = given_tokens
        error = json.loads(line_of(bad_row_object(found)))["error"]
        assert error == {
            "code": "context_length_exceeded",
            "message": f"line 1: {found.message}",
            **numbers,
        }
        assert all(str(n) in found.message for n in (64, size))


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
    assert (second.custom_id, second.index, second.line, second.kind) == ("b", 1, 4, "chat")


def test_what_a_row_says_wins_over_the_defaults(tmp_path: Path) -> None:
    defaults = SamplingDefaults(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.01, repetition_penalty=1.1
    )
    limits = RowLimits(max_context=64, default_max_output=16, sampling=defaults)
    own = {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    data = GOOD + b"\n" + json.dumps({"prompt": "a", **own}).encode()
    silent, spoken = read(tmp_path / "in.jsonl", data, limits)
    assert isinstance(silent, JobRow)
    assert isinstance(spoken, JobRow)
    assert {name: getattr(silent.sampling, name) for name in own} == asdict(defaults)
    assert spoken.sampling == Sampling(seed=spoken.sampling.seed)
    assert spoken.sampling.plain
    (plain,) = read(tmp_path / "in.jsonl", GOOD)
    assert isinstance(plain, JobRow)
    assert plain.sampling.temperature == 1  # OpenAI's


def test_generation_options_are_read(tmp_path: Path) -> None:
    line = chat(
        n=3,
        stop="END",
        stop_token_ids=[7, 9],
        min_tokens=2,
        logprobs=True,
        top_logprobs=20,
        logit_bias={"5": -100, "3": 1.5, "4": 0},
        top_k=40,
        presence_penalty=2,
        frequency_penalty=-2,
    )
    short = b'{"prompt": "a", "logprobs": 0, "stop": ["a", "b", "a"]}'
    nothing = chat(
        stop=None, n=None, logprobs=False, logit_bias={}, top_logprobs=0, stop_token_ids=[]
    )
    row, text, other = read(
        tmp_path / "in.jsonl", b"\n".join((line, short, nothing.replace(b'"a"', b'"z"')))
    )
    assert isinstance(row, JobRow)
    assert isinstance(text, JobRow)
    assert isinstance(other, JobRow)
    assert (row.num_samples, row.stop, row.stop_token_ids) == (3, ("END",), {7, 9})
    one = row.sampling
    assert (one.min_tokens, one.logprobs, one.top_k) == (2, 20, 40)
    assert one.logit_bias == ((3, 1.5), (5, -100.0))
    assert (one.presence_penalty, one.frequency_penalty) == (2, -2)
    assert (text.sampling.logprobs, text.stop) == (0, ("a", "b"))
    assert other.sampling == Sampling(temperature=1.0, seed=other.sampling.seed)
    assert (other.stop, other.stop_token_ids, other.num_samples) == ((), frozenset(), 1)


def test_samples_are_rows_with_seeds_of_their_own_and_come_together_again(tmp_path: Path) -> None:
    data = b"\n".join(
        json.dumps({"prompt": "a", "custom_id": str(n), "n": n}).encode() for n in (1, 3, 2)
    )
    rows = [row for row in read(tmp_path / "in.jsonl", data) if isinstance(row, JobRow)]
    jobs = samples(rows)
    assert [(one.index, one.sample) for one in jobs] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    assert len({one.sampling.seed for one in jobs}) == 6
    assert [one.sampling.seed for one in jobs if not one.sample] == [r.sampling.seed for r in rows]
    for order in itertools.islice(itertools.permutations(range(6)), 0, None, 7):
        gathered: SamplesOfRows[int] = SamplesOfRows()
        whole = {}
        for place in order:
            ours = gathered.add(jobs[place], place)
            if ours is not None:
                whole[jobs[place].index] = ours
        assert whole == {0: [0], 1: [1, 2, 3], 2: [4, 5]}


def test_bom_and_unicode_line_separators_do_not_split_or_spoil(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c"
    data = b"\xef\xbb\xbf" + json.dumps({"prompt": text}, ensure_ascii=False).encode()
    (row,) = read(tmp_path / "in.jsonl", data)
    assert isinstance(row, JobRow)
    assert bytes(row.prompt_ids).decode() == text


def test_nothing_is_read_behind_the_limit(tmp_path: Path) -> None:
    """And the digest is that of the bytes that were read: all, without a limit that stops."""
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"prompt": "x" * (n % 7 + 1)}).encode() + b"\n" for n in range(600)]
    lines[3] = b"  \r\n"
    lines[5] = b"nonsense\n"
    lines[-1] = lines[-1].rstrip()
    path.write_bytes(b"".join(lines))
    everything = read_job(path, ByteEncoder(), LIMITS)
    for limit in (1, 4, 5, BATCH_ROWS, BATCH_ROWS + 1, 599, 900, None):
        digest = InputDigest()
        rows = read_job(path, ByteEncoder(), LIMITS, limit=limit, digest=digest)
        assert rows == everything[:limit]
        read_bytes = b"".join(lines[: rows[-1].line])
        assert digest.num_bytes == len(read_bytes)
        assert digest.hexdigest() == hashlib.sha256(read_bytes).hexdigest()


class Reversed(ByteEncoder):
    """What comes first ends last, and threads may be anywhere."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_texts(self, texts: Sequence[str]) -> list[list[int] | ValueError]:
        self.calls += 1
        time.sleep(0.02 / self.calls)
        return super().encode_texts(texts)


def test_rows_are_the_same_in_any_number_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rng = random.Random(1)
    kinds = [
        lambda n: json.dumps({"prompt": "x" * (n % 9 + 1)}).encode(),
        lambda n: json.dumps({"prompt": list(range(n % 5))}).encode(),
        lambda n: json.dumps({"prompt": "\0"}).encode(),
        lambda n: json.dumps({"messages": [{"role": "robot", "content": "x"}]}).encode(),
        lambda n: json.dumps({"messages": [{"role": "user", "content": f"{n}"}]}).encode(),
        lambda n: json.dumps({"prompt": 5}).encode(),
        lambda n: b"nonsense",
        lambda n: json.dumps({"custom_id": "twice", "prompt": "x"}).encode(),
    ]
    path.write_bytes(b"\n".join(rng.choice(kinds)(n) for n in range(6 * BATCH_ROWS)))
    want = read_job(path, ByteEncoder(), LIMITS)
    assert len(want) == 6 * BATCH_ROWS
    for threads in (2, 3, 16):
        digest = InputDigest()
        assert list(read_rows(path, Reversed(), LIMITS, digest=digest, threads=threads)) == want
        assert digest.num_bytes == path.stat().st_size


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


def test_how_deep_json_may_be_does_not_depend_on_who_reads() -> None:
    def line(depth: int, inner: bytes) -> bytes:
        return b'{"a": ' + b"[" * (depth - 1) + inner + b"]" * (depth - 1) + b"}"

    def read_below(frames: int, depth: int) -> bool:
        if frames:
            return read_below(frames - 1, depth)
        return isinstance(parse_object(line(depth, b'"[[[{"')), dict)

    assert [read_below(0, depth) for depth in (1, 499, 500, 501, 700)] == [True] * 3 + [False] * 2
    assert [read_below(300, depth) for depth in (500, 501, 700, 5000)] == [True] + [False] * 3


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
    if data.startswith(b"\x1f\x8b"):  # that is gzip, and damaged as a whole
        data = b"\n" + data
    rows = read(tmp_path / "in.jsonl", data)
    pieces = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert len(rows) == sum(bool(piece.strip()) for piece in pieces)
    assert [row.index for row in rows] == list(range(len(rows)))
    last = rows[-1]
    assert isinstance(last, JobRow)
    ids = [row.custom_id for row in rows if isinstance(row, JobRow)]
    assert len(ids) == len(set(ids))


def test_unknown_fields_are_counted_or_refused(tmp_path: Path) -> None:
    """In the body of a batch line as in a short row; a mistyped option never passes in silence."""
    data = b"\n".join(
        (chat(strange=1), b'{"prompt": "a", "id": "b", "temprature": 1}', b'{"prompt": "c"}')
    )
    limits = RowLimits(max_context=64, default_max_output=16)
    assert all(isinstance(row, JobRow) for row in read(tmp_path / "in.jsonl", data, limits))
    assert limits.unknown == {"strange": 1, "temprature": 1}
    strict = RowLimits(max_context=64, default_max_output=16, strict=True)
    one, two, three = read(tmp_path / "in.jsonl", data, strict)
    for row, name in ((one, "strange"), (two, "temprature")):
        assert isinstance(row, BadRow)
        assert (row.code, name in row.message) == ("unsupported_field", True)
    assert isinstance(three, JobRow)


def test_rows_for_another_model_are_not_answered_by_this_one(tmp_path: Path) -> None:
    names: list[Any] = ["mine", "too", "gpt-9", None, "", 5, ["mine"]]
    lines = [json.dumps({"prompt": "x", "model": name}).encode() for name in names]
    data = b"\n".join([*lines, b'{"prompt": "x"}'])
    told = read(tmp_path / "in.jsonl", data, replace(LIMITS, models=frozenset(["mine", "too"])))
    codes = [one.code if isinstance(one, BadRow) else "" for one in told]
    assert codes == ["", "", "model_not_found", "", "model_not_found", *["invalid_field"] * 2, ""]
    assert told[2].message == "model 'gpt-9' is not here, but mine, too"
    codes = [
        one.code if isinstance(one, BadRow) else "" for one in read(tmp_path / "in.jsonl", data)
    ]
    assert codes == ["", "", "", "", "", *["invalid_field"] * 2, ""]
