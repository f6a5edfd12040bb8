"""The journal: what it is given is there again, whole, in any order, whoever reads it."""

from __future__ import annotations

import resource
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import Unfinished, UserError
from batchgen.job.journal import Journal, holds_any, read_counts, read_lines

ANSWERS = st.lists(
    st.tuples(st.integers(0, 99), st.binary(max_size=40), st.sampled_from(["", "x", "timeout"])),
    unique_by=lambda one: one[0],
)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ANSWERS, st.sampled_from([0.0, 0.005]))
def test_answers_come_back_in_both_orders(
    tmp_path_factory: pytest.TempPathFactory,
    given_: list[tuple[int, bytes, str]],
    commit_s: float,
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.sqlite"
    half = len(given_) // 2
    for part in (given_[:half], given_[half:]):  # two processes, one after the other
        with Journal(path, commit_s=commit_s) as journal:
            for row, line, code in part:
                journal.answer(row, line, code)
            journal.sync()
            assert list(read_lines(path)) == list(journal.lines())
    with Journal(path) as journal:
        assert list(journal.lines()) == [line for _, line, _ in sorted(given_)]
        assert list(journal.lines("completion")) == [line for _, line, _ in given_]
        assert np.flatnonzero(journal.answered()).tolist() == sorted(row for row, _, _ in given_)
        codes = [code for _, _, code in given_]
        assert journal.counts() == {code: codes.count(code) for code in sorted(set(codes))}
        assert read_counts(path) == journal.counts()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 5), st.integers(0, 2)),
        st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1), min_size=1, max_size=4),
    ),
    st.sets(st.integers(0, 5)),
)
def test_tokens_of_unfinished_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    parts: dict[tuple[int, int], list[list[int]]],
    answered: set[int],
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.sqlite"
    with Journal(path) as journal:
        for (row, sample), lists in parts.items():
            begin = 0
            for ids in lists:
                journal.tokens(row, sample, begin, np.array(ids, dtype=np.int32))
                begin += len(ids)
        for row in answered:
            journal.answer(row, b"{}")
    with Journal(path) as journal:
        found = {one: ids.tolist() for one, ids in journal.produced().items()}
    assert found == {
        one: [token for ids in lists for token in ids]
        for one, lists in parts.items()
        if one[0] not in answered
    }


def test_what_does_not_follow_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.tokens(1, 0, 0, np.array([5, 6], dtype=np.int32))
        journal.tokens(1, 0, 3, np.array([8], dtype=np.int32))
        journal.tokens(2, 0, 1, np.array([8], dtype=np.int32))
        journal.sync()
        assert {one: ids.tolist() for one, ids in journal.produced().items()} == {(1, 0): [5, 6]}


def test_a_row_is_answered_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.answer(3, b"one")
    journal.answer(3, b"two")
    with pytest.raises(Unfinished, match="UNIQUE"):
        journal.sync()
    journal.__exit__(KeyError, KeyError(), None)
    assert threading.active_count() == 1 or not journal._thread.is_alive()


def test_a_disk_that_fills_loses_nothing_committed(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(path, commit_s=0.0)
    count = 0

    def fill() -> None:
        nonlocal count
        while count < 100:
            journal.answer(count, b"y" * 20_000)
            journal.sync()
            count += 1

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
        with pytest.raises(Unfinished, match=r"cannot write the journal .*; make room, then go on"):
            fill()
        with pytest.raises(Unfinished):  # the next call says so too, and does not wait
            journal.answer(1000, b"")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        journal.__exit__(Unfinished, Unfinished(""), None)
    assert 2 < count < 99
    with Journal(path) as again:
        assert again.num_answers() == count
        again.answer(count, b"z")
    assert read_counts(path) == {"": count + 1}


def test_what_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    assert not holds_any(path)
    path.write_bytes(b"not a database at all" * 100)
    assert holds_any(path)  # not known: nobody throws it away
    with pytest.raises(UserError, match=r"cannot open the journal .*file is not a database"):
        Journal(path)
    path.unlink()
    with Journal(path):
        pass
    assert not holds_any(path)
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA user_version=99")
    base.close()
    with pytest.raises(UserError, match="of form 99, this version reads 1; go on with the version"):
        Journal(path)
