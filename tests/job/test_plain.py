"""Lines that are read at once are what reading them exactly gives."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rows import CASES, chat

from batchgen.exec.template_wire import HEADER_BYTES, Refusal, pack_replies, unpack_replies
from batchgen.job.drafting import Draft
from batchgen.job.jsonl import exactly, parse_object
from batchgen.job.plain import plain_chat
from batchgen.job.row import RowLimits

TEXTS = st.text(st.sampled_from('ab:"\\/{}[],\x00\x7f\u00e9\u2028\ud800\U0001f600 \n'), max_size=6)
NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.sampled_from([-0.0, 1.7976931348623157e308, 5e-324, 1e22, 9007199254740993.0]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda some: st.one_of(st.lists(some, max_size=3), st.dictionaries(TEXTS, some, max_size=3)),
    max_leaves=6,
)
ODD = [
    b'{"a":1,"a":2}',
    b'{"a":1,"\\u0061":2}',
    b'{"a":":","a":"\\u003a"}',
    b'{"a":"::","a":"x"}',
    b'{"a" : 1, "b":{"c":1 ,"c" :2}}',
    b'{"a":"\\ud800"}',
    b'{"a":"\\udc00\\ud800"}',
    b'{"a":"\\ud83d\\ude00"}',
    b'{"a":01}',
    b'{"a":1.}',
    b'{"a":-}',
    b'{"a":1e400}',
    b'{"a":-0}',
    b'{"a":1e-400}',
    b'{"a":1.7976931348623159e308}',
    b'{"a":123456789012345678901234567890}',
    b'{"a":' + b"1" * 5000 + b"}",
    b'{"a":NaN}',
    b'{"a":"\x01"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\xff"}',
    b"\xef\xbb\xbf{}",
    b'{"a":1}x',
    b' \t{"a":1}\r ',
    b'{"a":[1,]}',
    b"[1]",
    b"",
    b'{"a":' * 600 + b"1" + b"}" * 600,
]
STYLES = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " :"), (",\t", ": ")]),
    }
)
LIMITS = RowLimits(max_context=64)
NAMED = RowLimits(max_context=64, models=frozenset({"m"}), strict=True)


def written(value: object, style: dict[str, Any]) -> bytes:
    return json.dumps(value, **style).encode("utf-8", "surrogatepass")


def spoiled(line: bytes, place: int, piece: bytes, lost: int) -> bytes:
    """With something else in a place of it."""
    place %= len(line) + 1
    return line[:place] + piece + line[place + lost :]


def same(value: object) -> str:
    """Tells 1 from 1.0 and from true, and -0.0 from 0.0."""
    return repr(value)


PIECES = st.sampled_from(
    [b"", b":", b'"', b"\\", b"\\u003a", b"\\ud83d", b"1", b"e9", b"{", b"}", b",", b"\xff", b" "]
)


@settings(deadline=None, max_examples=120)
@given(
    st.dictionaries(TEXTS, VALUES, max_size=4),
    STYLES,
    st.none() | st.tuples(st.integers(0, 200), PIECES, st.integers(0, 3)),
)
def test_any_line_is_what_reading_it_exactly_gives(
    value: dict[str, Any], style: dict[str, Any], spoil: tuple[int, bytes, int] | None
) -> None:
    line = written(value, style)
    if spoil is not None:
        line = spoiled(line, *spoil)
    assert same(parse_object(line)) == same(exactly(line))
    twice = b"{" + line[1:-1] + b"," + line[1:]  # each member comes twice
    assert same(parse_object(twice)) == same(exactly(twice))


@pytest.mark.parametrize("line", ODD)
def test_odd_lines_too(line: bytes) -> None:
    assert same(parse_object(line)) == same(exactly(line))


def told(draft: Draft) -> str:
    error = draft.error
    why = None if error is None else (error.code, error.message, error.numbers)
    rest = (
        ()
        if error is not None
        else (draft.kind, draft.body, list(draft.body), draft.prompt, draft.unknown)
    )
    return repr((draft.custom_id, why, rest))


MESSAGE = {"role": "user", "content": "a: b"}
MESSAGES = st.one_of(
    st.just([MESSAGE]),
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}),
            st.sampled_from([{"role": "user"}, {"role": "user", "content": None}, "x", 1]),
            st.just({"role": "user", "content": [{"type": "text", "text": "x"}]}),
            st.just({"role": "user", "content": "x", "name": "y"}),
        ),
        max_size=3,
    ),
    VALUES,
)
FIELDS = st.dictionaries(
    st.sampled_from(["temperature", "seed", "stop", "user", "stream", "tools", "odd", "prompt"]),
    VALUES,
    max_size=2,
)
ROWS = st.fixed_dictionaries(
    {
        "custom_id": st.one_of(TEXTS, st.sampled_from(["a", "", 1, None])),
        "method": st.sampled_from(["POST", "POST", "GET"]),
        "url": st.sampled_from(["/v1/chat/completions"] * 3 + ["/v1/completions", "/x", 1]),
    },
    optional={"odd": VALUES, "messages": MESSAGES},
)


@settings(deadline=None, max_examples=120)
@given(
    ROWS,
    FIELDS,
    MESSAGES,
    st.one_of(st.none(), TEXTS, st.just("m")),
    STYLES,
    st.none() | st.tuples(st.integers(0, 200), PIECES, st.integers(0, 3)),
    st.sampled_from([LIMITS, NAMED]),
)
def test_any_chat_is_what_reading_it_step_by_step_gives(
    row: dict[str, Any],
    fields: dict[str, Any],
    messages: object,
    model: str | None,
    style: dict[str, Any],
    spoil: tuple[int, bytes, int] | None,
    limits: RowLimits,
) -> None:
    line = written(row | {"body": {"model": model, "messages": messages, **fields}}, style)
    if spoil is not None:
        line = spoiled(line, *spoil)
    want = told(Draft.of_value(1, exactly(line), None, limits))
    assert told(Draft.of(1, line, "jsonl", None, limits)) == want


@pytest.mark.parametrize("line", [line for _, line in CASES], ids=range(len(CASES)))
def test_so_are_the_hazards_of_the_rows(line: bytes) -> None:
    want = told(Draft.of_value(1, exactly(line), None, NAMED))
    assert told(Draft.of(1, line, "jsonl", None, NAMED)) == want


def test_usual_chats_are_read_at_once_and_no_others() -> None:
    """Else this would be a test of nothing."""
    usual = chat(temperature=0.5, stop=["a:"], seed=3)
    assert plain_chat(usual) is not None
    assert plain_chat(usual.replace(b'"seed"', b'"odd"')) is None
    assert plain_chat(usual.replace(b'"role"', b'"role": "x", "role"')) is None
    assert plain_chat(re.sub(rb'"POST"', b'"GET"', usual)) is None
    assert plain_chat(b'{"messages": []}') is None


@given(st.lists(st.tuples(st.booleans(), TEXTS.filter(lambda text: "\ud800" not in text))))
def test_replies_of_a_template_come_as_they_were_sent(some: list[tuple[bool, str]]) -> None:
    replies = [text if good else Refusal(text) for good, text in some]
    data = pack_replies(replies)
    assert int.from_bytes(data[:HEADER_BYTES], "little") == len(data) - HEADER_BYTES
    found = unpack_replies(data[HEADER_BYTES:])
    assert found == replies
    assert [isinstance(one, Refusal) for one in found] == [not good for good, _ in some]
