"""The same rows in every form of file, and what is wrong with a file or a row of it."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.job.checking import check_rows
from batchgen.job.fields import TYPED
from batchgen.job.inputs import form_of, read_input
from batchgen.job.jsonl import BadLine, InputDigest
from batchgen.job.prompts import RowError
from batchgen.job.shape import Shape, make_shape

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=12
)
ROWS = st.lists(
    st.fixed_dictionaries({"custom_id": TEXT, "prompt": TEXT, "max_tokens": st.integers(1, 99)}),
    min_size=1,
    max_size=6,
)


def read(path: Path, form: str = "auto") -> list[dict[str, Any] | BadLine]:
    return [value for _, value in read_input(path, form_of(path, form), typed=TYPED)]


def packed(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS)
def test_every_form_holds_the_same_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    table = io.StringIO()
    writer = csv.DictWriter(table, ["custom_id", "prompt", "max_tokens"])
    writer.writeheader()
    writer.writerows(rows)
    for suffix in ("", ".gz"):
        assert read(packed(tmp_path / f"a.jsonl{suffix}", jsonl)) == rows
        assert read(packed(tmp_path / f"a.csv{suffix}", table.getvalue().encode())) == rows
    assert read(packed(tmp_path / "named.gz", jsonl)) == rows  # by what is in it
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == rows
    (tmp_path / "a.parquet").rename(tmp_path / "unnamed")
    assert read(tmp_path / "unnamed") == rows
    lines = [row["prompt"].replace("\n", " ") for row in rows]
    path = packed(tmp_path / "a.txt", "\n".join(lines).encode())
    assert read(path) == [{"prompt": line} for line in lines if line.encode().strip()]


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    data = b'{"prompt": "a"}\n' * 3
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    packed(tmp_path / "a.jsonl.gz", data)
    packed(tmp_path / "a.jsonl", data)
    for name in ("a.parquet", "a.jsonl.gz", "a.jsonl"):
        digest = InputDigest()
        list(read_input(tmp_path / name, form_of(tmp_path / name), digest=digest))
        whole = (tmp_path / name).read_bytes()
        assert digest.hexdigest() == hashlib.sha256(whole).hexdigest(), name
        assert digest.num_bytes == len(whole)


def test_bad_rows_of_a_table_hurt_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfcustom_id,prompt,max_tokens,note\n"
        b"a,one,5,007\n"
        b"b,two\n"
        b'c,"thr\nee",,1.50\n'
        b"d,\xff,1,\n"
        b'e,"a"b,1,\n'
        b"\n"
        b",,7x,\n"
    )
    found = list(read_input(path, "csv", typed=TYPED))
    assert [line for line, _ in found] == [2, 3, 5, 6, 7, 9]
    bad = [(line, value.code) for line, value in found if isinstance(value, BadLine)]
    assert bad == [(3, "invalid_csv"), (6, "invalid_utf8"), (7, "invalid_csv")]
    good = [value for _, value in found if not isinstance(value, BadLine)]
    assert good == [
        {"custom_id": "a", "prompt": "one", "max_tokens": 5, "note": "007"},  # texts stay texts
        {"custom_id": "c", "prompt": "thr\nee", "note": "1.50"},
        {"prompt": "", "max_tokens": "7x", "note": ""},
    ]


def test_odd_values_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [
        {"id": 7, "messages": [{"role": "user", "content": "a", "name": None}], "x": b"raw"},
        {"id": None, "messages": None, "x": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = read(path)
    assert isinstance(first, BadLine)
    assert first.code == "invalid_row"
    assert second == {}
    pq.write_table(pa.Table.from_pylist([{k: v for k, v in rows[0].items() if k != "x"}]), path)
    assert read(path) == [{"id": "7", "messages": [{"role": "user", "content": "a"}]}]


def of_999(data: bytes) -> bytes:
    """Without the time, which would be part of a test's name: workers must agree on names."""
    return gzip.compress(data * 999, mtime=0)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.parquet", b"nonsense", "is no Parquet file"),
        ("a.jsonl.gz", of_999(b'{"prompt": "a"}\n')[:-9], "is damaged: EOFError"),
        ("a.jsonl.gz", of_999(b"x")[:20] + b"\xff" * 30, "is damaged: error: "),
        ("a.csv", b"", "holds no rows; begin with a line of column names"),
        ("a.csv", b"a,b,a\n1,2,3\n", "has two columns 'a'"),
        ("a.csv", b"\xff,b\n1,2\n", "begins with what is no text"),
        ("a.csv", b'"a"b,c\n1,2\n', "its header is no CSV"),
    ],
)
def test_files_that_are_none(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_forms_are_said_or_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('{"prompt": "a"}\n')
    assert read(path, "jsonl") == [{"prompt": "a"}]
    with pytest.raises(UserError, match="--input-format is 'xml'; choose one of auto, jsonl, csv"):
        form_of(path, "xml")
    with pytest.raises(UserError, match="cannot read"):
        form_of(tmp_path / "none")


PIECES = st.lists(
    st.one_of(
        TEXT.map(lambda text: ("text", text)), st.sampled_from("abc").map(lambda c: ("col", c))
    )
)


@given(PIECES, st.booleans(), st.sampled_from([None, "sys"]))
def test_templates_are_filled(
    pieces: list[tuple[str, str]], chat: bool, system: str | None
) -> None:
    """Texts come as they are, braces too, columns by their values."""
    values = {"a": "{b}", "b": "x", "c": 3}
    escaped = {"{": "{{", "}": "}}"}
    template = "{a}" + "".join(
        "".join(escaped.get(one, one) for one in text) if kind == "text" else f"{{{text}}}"
        for kind, text in pieces
    )
    want = "{b}" + "".join(text if kind == "text" else str(values[text]) for kind, text in pieces)
    shape = make_shape(None, template, chat=chat, system=system if chat else None)
    assert shape is not None
    used = {"a", *(text for kind, text in pieces if kind == "col")}
    body = shape.body(values | {"temperature": 0})
    rest = {name: value for name, value in values.items() if name not in used}
    if chat:
        said = [{"role": "system", "content": "sys"}] if system else []
        said.append({"role": "user", "content": want})
        assert body == rest | {"temperature": 0, "messages": said}
    else:
        assert body == rest | {"temperature": 0, "prompt": want}


def test_what_is_no_template() -> None:
    def make(column: str | None = None, template: str | None = None, **more: Any) -> Shape | None:
        return make_shape(column, template, **{"chat": False, "system": None, **more})

    assert make() is None
    for template, said in (
        ("{a", "has '{' at character 1"),
        ("x{a} }", "has '}' at character 6"),
        ("{}", "has '{}' at character 1"),
        ("none", "names no column"),
        ("{{a}}", "names no column"),
    ):
        with pytest.raises(UserError, match=said):
            make(template=template)
    with pytest.raises(UserError, match="exclude each other"):
        make("a", "{a}")
    with pytest.raises(UserError, match="is no name of a column"):
        make("a}")
    with pytest.raises(UserError, match="--chat is for prompts from columns"):
        make(chat=True)
    with pytest.raises(UserError, match="--system is for chats"):
        make("a", system="x")
    shape = make("a")
    assert shape is not None
    with pytest.raises(RowError, match="column 'a' is missing"):
        shape.body({"b": 1})
    with pytest.raises(RowError, match="column 'a' is no text"):
        shape.body({"a": [1]})


def test_a_typed_field_is_one_value(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('prompt,max_tokens\na,5\nb,"5,""n"":2"\n')
    good = [row for row in read(path) if not isinstance(row, BadLine)]
    assert [row["max_tokens"] for row in good] == [5, '5,"n":2']


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    table=st.lists(
        st.lists(st.text("ab 1.", min_size=1, max_size=6), min_size=2, max_size=2),
        min_size=1,
        max_size=30,
    ),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    place=st.integers(0, 29),
    opens=st.booleans(),
)
def test_a_quote_that_is_not_closed_costs_one_row(
    tmp_path: Path, table: list[list[str]], quoting: Any, place: int, opens: bool
) -> None:
    """Wherever it stands, and whether what follows has quotes or not."""
    place %= len(table)
    text = io.StringIO()
    csv.writer(text, quoting=quoting, lineterminator="\n").writerows([["id", "prompt"], *table])
    lines = text.getvalue().splitlines()
    stray = ",".join(table[place])
    lines[1 + place] = f'"{stray}' if opens else stray.replace(",", ',"')
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    found = list(read_input(path, "csv"))
    assert [line for line, _ in found] == list(range(2, len(table) + 2))
    for number, (row, (_, value)) in enumerate(zip(table, found, strict=True)):
        if number == place:
            assert isinstance(value, BadLine)
            assert value.code == "invalid_csv"
        else:
            assert value == {"id": row[0], "prompt": row[1]}


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    before=st.lists(st.tuples(TEXT, TEXT), max_size=6),
    after=st.lists(st.text('a",\n', max_size=8), max_size=12),
)
def test_whatever_follows_rows_before_are_unharmed_and_no_line_is_lost(
    tmp_path: Path, before: list[tuple[str, str]], after: list[str]
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "prompt"), *before])
    path = tmp_path / "a.csv"
    path.write_bytes((text.getvalue() + '"a,b\n' + "\n".join(after)).encode())
    found = list(read_input(path, "csv"))
    assert [value for _, value in found[: len(before)]] == [
        {name: text for name, text in (("id", id_), ("prompt", prompt)) if text}
        for id_, prompt in before
    ]
    numbers = [line for line, _ in found]
    assert numbers == sorted(set(numbers))  # no line ends two rows


def test_where_a_quote_opens_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,prompt\na,b\nc,"d\n' + "e,f\n" * 2000)
    found = list(read_input(path, "csv"))
    assert len(found) == 2002
    line, bad = found[1]
    assert (line, isinstance(bad, BadLine) and bad.message) == (
        3,
        "a quote that opens here is not closed as it should be: unexpected end of data, on line "
        "2003; close it, or double it if it is part of a text",
    )
    path.write_text('id,prompt\na,"b\nc,d\n","e"\n')
    ((_, bad),) = read_input(path, "csv")
    assert isinstance(bad, BadLine)
    assert bad.message.endswith("the header 2; it goes from line 2 to line 4")


def test_a_row_that_never_ends_is_looked_for_no_further_than_a_line_may_be(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,prompt\na,"b\n' + "c,d\n" * 1000)
    found = list(read_input(path, "csv", 100))
    assert len(found) == 1001
    assert isinstance(found[0][1], BadLine)
    assert "field larger than field limit (100), on line 27" in found[0][1].message


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_a_column_that_no_row_has_is_no_error_of_rows(form: str, tmp_path: Path) -> None:
    """Unless each row has fields of its own."""
    rows = [{"question": f"what is {number}", "answer": "4"} for number in range(3)]
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "csv":
        path.write_text(
            "question,answer\n" + "".join(",".join(row.values()) + "\n" for row in rows)
        )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not check_rows(path, shape=Shape(template="{question}: {answer}")).bad.counts
    other = Shape(template="{question}: {title}")
    if form == "jsonl":
        assert check_rows(path, shape=other).bad.counts.total() == len(rows)
        return
    with pytest.raises(UserError, match=r"a\.[a-z]+ has no column 'title'") as caught:
        check_rows(path, shape=other)
    assert caught.value.remedy == "its columns are question, answer"
