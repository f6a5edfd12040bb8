"""Rows in columns are the rows that came, and take little."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec.job_rows import JobRows
from batchgen.job.columns import Columns
from batchgen.job.rows import JobRow
from batchgen.job.samples import samples
from batchgen.job.sampling import Sampling

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7]),
    seed=st.integers(-(1 << 63), (1 << 64) - 1),
    top_k=st.integers(0, 2),
    logprobs=st.sampled_from([None, 0, 3]),
    logit_bias=st.sampled_from([(), ((1, 2.0), (7, -1.0))]),
)
ROWS = st.builds(
    JobRow,
    index=st.just(0),
    line=st.integers(1, 1 << 40),
    custom_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    kind=st.sampled_from(["chat", "completion"]),
    model=st.sampled_from([None, "m"]),
    prompt_ids=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=5).map(tuple),
    max_output=st.integers(1, 1 << 30),
    sampling=SAMPLINGS,
    ignore_eos=st.booleans(),
    stop=st.sampled_from([(), ("a", "b")]),
    stop_token_ids=st.sampled_from([frozenset(), frozenset({3})]),
    num_samples=st.integers(1, 3),
    request=st.sampled_from([{}, {"a": 1}]),
)


def columns_of(rows: Sequence[JobRow]) -> Columns:
    """What encoding would have made of them; each has a common row of its own."""
    ids = [row.custom_id.encode() for row in rows]
    signs = [-1 if row.sampling.seed < 0 else 1 for row in rows]
    return Columns(
        index=np.array([row.index for row in rows], dtype=np.int64),
        line=np.array([row.line for row in rows], dtype=np.int64),
        ids=b"".join(ids),
        id_ends=np.cumsum([len(one) for one in ids], dtype=np.int64),
        max_output=np.array([row.max_output for row in rows], dtype=np.int64),
        seeds=np.array([abs(row.sampling.seed) for row in rows], dtype=np.uint64),
        common=np.arange(len(rows), dtype=np.int32),
        commons=[
            replace(row, sampling=row.sampling.with_seed(sign), prompt_ids=(), request={})
            for row, sign in zip(rows, signs, strict=True)
        ],
        tokens=np.array([one for row in rows for one in row.prompt_ids], dtype=np.int32),
        num_tokens=np.array([len(row.prompt_ids) for row in rows], dtype=np.int64),
        requests=[row.request for row in rows] if any(row.request for row in rows) else [],
    )


def same(one: JobRow, other: JobRow) -> bool:
    fields = JobRow.__dataclass_fields__
    return all(
        list(getattr(one, name)) == list(getattr(other, name))
        if name == "prompt_ids"
        else getattr(one, name) == getattr(other, name)
        for name in fields
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(ROWS, max_size=8))
def test_what_came_is_what_is_there(rows: list[JobRow]) -> None:
    rows = [replace(row, index=3 * number) for number, row in enumerate(rows)]
    columns = JobRows()
    for begin in range(0, len(rows), 3):
        columns.extend(columns_of(rows[begin : begin + 3]))
    want = samples(rows)
    assert len(columns) == len(want)
    assert all(same(one, other) for one, other in zip(columns, want, strict=True))
    assert all(same(columns[-n], want[-n]) for n in range(1, len(want) + 1))
    assert columns.prompt_tokens().tolist() == [len(row.prompt_ids) for row in want]
    assert columns.max_output().tolist() == [row.max_output for row in want]
    wanted = {(row.index, row.sample): number for number, row in enumerate(want)}
    assert columns.places(wanted | {(1, 0): -1}) == {n: n for n in range(len(want))}


def test_a_row_takes_its_ids_and_little_more() -> None:
    row = JobRow(
        index=0,
        line=1,
        custom_id="x" * 20,
        kind="chat",
        model=None,
        prompt_ids=(1,) * 10,
        max_output=5,
        sampling=Sampling(seed=1 << 60),
        ignore_eos=False,
    )
    columns = JobRows()
    many = columns_of([row] * 100)
    columns.extend(many)
    tracemalloc.start()
    for _ in range(200):
        columns.extend(many)
    took, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 20_000 * 160


@given(st.lists(ROWS, max_size=6), st.data())
def test_columns_are_rows_and_some_of_them_are_those(
    rows: list[JobRow], data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    columns = columns_of(rows)
    assert list(columns.rows()) == rows
    some = columns.only(np.array(kept, dtype=np.bool_))
    assert list(some.rows()) == [row for row, keep in zip(rows, kept, strict=True) if keep]
