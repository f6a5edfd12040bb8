"""Requests of failed rows, of every form of input: they are rows again, the same ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.job.checking import check_rows
from batchgen.job.inputs import form_of, read_input
from batchgen.job.jsonl import BadLine
from batchgen.job.retry import failed_requests
from batchgen.job.rows import BadRow, JobRow, RowLimits, read_job

LINES = [
    b'{"prompt": "a",  "seed": 1}',
    b'{"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "x"}}',
    b"",
    b'{"id": "c", "prompt": "\xc3\xa9"}',
    b'{"prompt": ',
    b"\xff\xfe",
    b'{"custom_id": null, "prompt": "d"}',
    b"[1]",
    b'{"url": "/v1/completions"}',
    b"  ",
    b'{"prompt": "e"}\r',
]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=12), st.data())
def test_lines_are_rows_again(tmp_path: Path, lines: list[bytes], data: st.DataObject) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = [value for _, value in read_input(path)]
    failed = data.draw(st.sets(st.integers(0, max(len(rows) - 1, 0))))
    (tmp_path / "again.jsonl").write_bytes(
        b"".join(line + b"\n" for line in failed_requests(path, "jsonl", failed))
    )
    again = [value for _, value in read_input(tmp_path / "again.jsonl")]
    want = [row for number, row in enumerate(rows) if number in failed]
    assert len(again) == len(want)
    for one, two in zip(want, again, strict=True):
        if isinstance(one, dict) and isinstance(two, dict):
            named = one.get("custom_id") is not None or "body" in one or "id" in one or "url" in one
            assert two == one if named else two.pop("custom_id").startswith("line-")
        else:
            assert isinstance(one, BadLine)
            assert one == two


class _Bytes:
    vocab_size = 300

    def encode_texts(self, texts: Any) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def encode_conversations(self, conversations: Any) -> Any:
        return [self.encode(json.dumps(one)) for one in conversations]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet", "a.txt"])
def test_seeds_and_prompts_are_those_of_the_first_time(name: str, tmp_path: Path) -> None:
    texts, path = ["one", "two", "three", "four"], tmp_path / name
    if name.startswith("a.jsonl"):
        data = "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    elif name == "a.csv":
        path.write_text("prompt,max_tokens\n" + "".join(f"{text},5\n" for text in texts))
    elif name == "a.txt":
        path.write_text("\n".join(texts))
    else:
        pq.write_table(pa.Table.from_pylist([{"prompt": text} for text in texts]), path)
    again = tmp_path / "again.jsonl"
    lines = failed_requests(path, form_of(path), {1, 3})
    again.write_bytes(b"".join(line + b"\n" for line in lines))
    limits = RowLimits(max_context=100, default_max_output=5)
    form = form_of(path)
    from batchgen.job.rows import read_rows

    first = list(read_rows(path, _Bytes(), limits, form=form))
    second = read_job(again, _Bytes(), limits)
    assert len(second) == 2
    for one, two in zip((first[1], first[3]), second, strict=True):
        assert isinstance(one, JobRow)
        assert isinstance(two, JobRow)
        assert (one.custom_id, one.prompt_ids, one.sampling, one.max_output) == (
            (two.custom_id, two.prompt_ids, two.sampling, two.max_output)
        )


# -- options that many rows have are read once ----------------------------------------------------

OPTIONS: dict[str, Any] = {
    "temperature": st.sampled_from([0, 1, True, 0.5, 200, "1", None]),
    "top_k": st.sampled_from([-1, 0, 1, 5, 1.0, None]),
    "n": st.sampled_from([1, 2, 2.0, True, 0]),
    "stop": st.sampled_from(["x", ["x", "y"], [], "", None, 1]),
    "min_tokens": st.sampled_from([0, 3, 50]),
    "max_tokens": st.sampled_from([1, 9, 60]),
    "ignore_eos": st.sampled_from([True, False, None, 1, 0]),
    "logprobs": st.sampled_from([0, 3, False, None]),
    "seed": st.sampled_from([1, -5, None, "x", 1 << 70]),
    "logit_bias": st.sampled_from([{"3": 1}, {}, None]),
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.fixed_dictionaries({}, optional=OPTIONS), min_size=1, max_size=12))
def test_rows_that_share_options_are_as_if_alone(
    tmp_path: Path, bodies: list[dict[str, Any]]
) -> None:
    """1, 1.0 and true are equal in Python and not in JSON: no row gets what another one asked."""

    def rows(some: list[dict[str, Any]], first: int) -> list[JobRow | BadRow]:
        lines = (
            json.dumps({"custom_id": f"r{first + number}", "prompt": "p"} | body)
            for number, body in enumerate(some)
        )
        (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines))
        return read_job(
            tmp_path / "in.jsonl", _Bytes(), RowLimits(max_context=99, default_max_output=9)
        )

    together = rows(bodies, 0)
    for number, one in enumerate(together):
        (alone,) = rows([bodies[number]], number)
        assert type(one) is type(alone)
        if isinstance(one, JobRow) and isinstance(alone, JobRow):
            assert one.sampling == alone.sampling
            assert (one.ignore_eos, one.stop, one.num_samples) == (
                (alone.ignore_eos, alone.stop, alone.num_samples)
            )
        elif isinstance(one, BadRow) and isinstance(alone, BadRow):
            assert (one.code, one.message) == (alone.code, alone.message)


def test_a_check_finds_what_reading_finds_but_for_lengths(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([*LINES, LINES[1], b'{"prompt": "a", "temperature": -1}']))
    found = check_rows(path)
    rows = read_job(path, _Bytes(), RowLimits(max_context=1000, default_max_output=9))
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert found.num_rows == len(rows)
    assert found.bad.counts.total() == len(bad)
    for code in found.bad.counts:
        want = [(row.line, row.message) for row in bad if row.code == code]
        assert found.bad.counts[code] == len(want)
        assert [(row.line, row.message) for row in found.bad.first[code]] == want[:3]
