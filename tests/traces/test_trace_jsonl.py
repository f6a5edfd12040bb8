"""The JSONL format: what goes out comes back, bad lines are named, files appear whole."""

from __future__ import annotations

import gzip
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import DataError, UserError
from batchgen.trace import Trace, TraceBuilder, load, make_trace, save
from batchgen.trace.lines import MAX_LINE_BYTES
from batchgen.trace.schema import arrival_to_ps

COLUMNS = (
    "prompt_tokens",
    "output_tokens",
    "max_output_tokens",
    "arrival_ps",
    "group",
    "prefix_offsets",
    "prefix_blocks",
)
GOOD = '{"prompt_tokens": 5, "output_tokens": 7}'


def assert_same(a: Trace, b: Trace) -> None:
    for column in COLUMNS:
        left, right = getattr(a, column), getattr(b, column)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right, err_msg=column)
    for fact in ("name", "prefix_block_tokens", "ids", "expert_skew", "meta"):
        assert getattr(a, fact) == getattr(b, fact), fact


tokens = st.integers(1, 2**31 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    block = draw(st.sampled_from([1, 16, 512]))
    builder = TraceBuilder()
    with_ids = draw(st.booleans())
    for _ in range(draw(st.integers(1, 8))):
        prompt = draw(tokens)
        builder.add(
            prompt,
            draw(tokens),
            draw(st.integers(0, 2**63 - 1)),
            draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=min(4, -(-prompt // block)))),
            draw(texts) if with_ids else None,
            draw(st.integers(0, 2**31 - 1)),
            draw(st.integers(-1, 2**31 - 1)),
        )
    return builder.build(
        name=draw(texts.filter(bool)),
        prefix_block_tokens=block,
        expert_skew=draw(st.floats(0, 10)),
        meta=draw(st.dictionaries(texts, st.integers(-5, 5) | texts | st.booleans(), max_size=3)),
    )


@settings(max_examples=80, deadline=None)
@given(trace=traces(), ending=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_round_trip_is_exact_and_deterministic(
    tmp_path_factory: pytest.TempPathFactory, trace: Trace, ending: str
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    save(trace, folder / f"a{ending}")
    save(trace, folder / f"b{ending}")
    assert_same(load(folder / f"a{ending}"), trace)
    assert (folder / f"a{ending}").read_bytes() == (folder / f"b{ending}").read_bytes()
    assert len(list(folder.iterdir())) == 2


@settings(max_examples=50, deadline=None)
@given(trace=traces(), data=st.data())
def test_take_keeps_each_row_together(trace: Trace, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(trace) - 1), max_size=6))
    taken = trace.take(np.array(rows, dtype=np.int64))
    for new, old in enumerate(rows):
        for column in COLUMNS[:5]:
            assert getattr(taken, column)[new] == getattr(trace, column)[old]
        np.testing.assert_array_equal(_prefix(taken, new), _prefix(trace, old))
    assert_same(trace.head(3), trace.take(np.arange(min(3, len(trace)))))


def _prefix(trace: Trace, row: int) -> np.ndarray:
    return trace.prefix_blocks[trace.prefix_offsets[row] : trace.prefix_offsets[row + 1]]


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "t.jsonl"
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return path


HEADER = '{"batchgen_trace": 1, "prefix_block_tokens": 16}'
BAD_LINES = [
    ('{"prompt_tokens": 0, "output_tokens": 7}', "prompt_tokens"),
    ('{"prompt_tokens": 5}', "output_tokens"),
    ('{"prompt_tokens": 5, "output_tokens": 7.5}', "output_tokens"),
    ('{"prompt_tokens": true, "output_tokens": 7}', "prompt_tokens"),
    ('{"prompt_tokens": "5", "output_tokens": 7}', "prompt_tokens"),
    ('{"prompt_tokens": 5, "output_tokens": NaN}', None),
    ('{"prompt_tokens": 5, "output_tokens": 7, "arrival_s": 1e999}', "arrival_s"),
    ('{"prompt_tokens": 5, "output_tokens": 7, "arrival_s": -1}', "arrival_s"),
    ('{"prompt_tokens": 5, "output_tokens": 7, "arrival_s": "NaN"}', "arrival_s"),
    ('{"prompt_tokens": 5, "output_tokens": 7, "max_tokens": 9}', "max_tokens"),
    ('{"prompt_tokens": 5, "output_tokens": 2147483648}', "output_tokens"),
    ('{"prompt_tokens": 5, "output_tokens": ' + "9" * 5000 + "}", "output_tokens"),
    ('{"prompt_tokens": 5, "output_tokens": 7, "prefix": [1, 2]}', "prefix"),
    ('{"prompt_tokens": 5, "output_tokens": 7, "prefix": [99999999999999999999]}', "prefix"),
    ('{"prompt_tokens": 5, "output_tokens": 7, "prefix": ' + "[" * 100_000, "prefix"),
    ('{"prompt_tokens": 5, "output_tokens": 7', None),
    ("[1, 2]", None),
    (GOOD + GOOD, None),
    (b'{"prompt_tokens": 5, "output_tokens": 7, "id": "\xff"}', None),
    (b" " * (MAX_LINE_BYTES + 1), None),
]


@pytest.mark.parametrize(("line", "field"), BAD_LINES)
def test_bad_line_is_named_or_counted(tmp_path: Path, line: str | bytes, field: str | None) -> None:
    path = write(tmp_path, HEADER, GOOD, line, GOOD)
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.line == 3
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{path}:3: ")
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    trace = load(path, skip_bad=True)
    assert len(trace) == 2
    assert trace.meta["skipped"]["lines"] == 1
    assert trace.meta["skipped"]["first"] == [str(caught.value)]


def test_lines_split_at_newline_bytes_only(tmp_path: Path) -> None:
    row = '{"prompt_tokens": 5, "output_tokens": 7, "id": "a\u2028b\u0085c"}'
    path = write(tmp_path, b"\xef\xbb\xbf" + HEADER.encode(), row + "\r", "", "  ", GOOD)
    trace = load(path)
    assert trace.ids == ("a\u2028b\u0085c", "1")
    assert trace.name == "t"


def test_last_of_a_repeated_field_counts(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt_tokens": 5, "output_tokens": 7, "output_tokens": 9}')
    assert load(path).output_tokens.tolist() == [9]


def test_max_rows_stops_before_later_damage(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, GOOD, "junk")
    assert len(load(path, max_rows=2)) == 2


@pytest.mark.parametrize("lines", [(), (HEADER,), ("", " ")])
def test_no_rows_is_an_error(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no rows"):
        load(write(tmp_path, *lines))


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ('{"batchgen_trace": 2}', "batchgen_trace"),
        ('{"batchgen_trace": 1, "expert_skew": -1}', "expert_skew"),
        ('{"batchgen_trace": 1, "nmae": "x"}', "nmae"),
    ],
)
def test_bad_header(tmp_path: Path, header: str, field: str) -> None:
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, header, GOOD))
    assert (caught.value.line, caught.value.field) == (1, field)


def test_damaged_gzip_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    whole = gzip.compress((GOOD + "\n").encode() * 5000)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        load(path)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path)


def test_never_overwrites_without_force(tmp_path: Path) -> None:
    trace = make_trace(name="x", prompt_tokens=[1], output_tokens=[2])
    path = tmp_path / "x.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        save(trace, path)
    assert path.read_text() == "precious"
    save(trace, path, force=True)
    assert_same(load(path), trace)
    with pytest.raises(UserError, match="cannot be written"):
        save(trace, tmp_path / "no" / "x.jsonl")


def test_arrivals_round_to_the_nearest_picosecond() -> None:
    assert arrival_to_ps(Decimal("0.0000000000015")) == 2
    assert arrival_to_ps(Decimal("9223372.036854775807")) == 2**63 - 1
    assert arrival_to_ps(Decimal("9223372.036854775808")) == -1


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt_tokens": [0], "output_tokens": [1]},
        {"prompt_tokens": [1, 2], "output_tokens": [1]},
        {"prompt_tokens": [1], "output_tokens": [1], "arrival_ps": np.array([-1])},
        {"prompt_tokens": [1], "output_tokens": [1], "ids": ("a", "b")},
        {"prompt_tokens": [1], "output_tokens": [1], "expert_skew": float("nan")},
        {
            "prompt_tokens": [16],
            "output_tokens": [1],
            "prefix_offsets": np.array([0, 2]),
            "prefix_blocks": np.array([1, 2]),
            "prefix_block_tokens": 16,
        },
    ],
)
def test_a_wrong_trace_cannot_be_made(columns: dict) -> None:
    with pytest.raises(ValueError, match=":"):
        make_trace(name="x", **columns)
