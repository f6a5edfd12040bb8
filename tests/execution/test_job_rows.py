"""Rows in columns are the rows that came, and take little."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec.job_rows import JobRows
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
    from dataclasses import replace

    rows = [replace(row, index=3 * number) for number, row in enumerate(rows)]
    columns = JobRows()
    for row in rows:
        columns.add(row)
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
    columns.add(row)
    tracemalloc.start()
    for _ in range(20_000):
        columns.add(row)
    took, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 20_000 * 160
