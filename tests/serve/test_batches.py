"""States, records and files of batches, without a server; the engine with runs that go wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import CHAT, row

from batchgen.errors import IllegalTransition, Unfinished, UserError
from batchgen.job.output import error_object, line_of
from batchgen.job.rows import Answered, BadRow, RowLimits, read_rows
from batchgen.serve import engine as engines
from batchgen.serve.clerk import Clerk
from batchgen.serve.engine import Engine, Task
from batchgen.serve.limits import Limits
from batchgen.serve.lines import check_lines, ids_of_rows
from batchgen.serve.objects import NEXT, UNFINISHED, Batch, FileObject, window_s
from batchgen.serve.results import write_results
from batchgen.serve.store import Store, new_batch_id, new_file_id, open_store
from batchgen.serve.turns import Turns


def test_no_way_leads_out_of_an_end() -> None:
    ends = set(NEXT) - set(UNFINISHED)
    assert ends == {"completed", "failed", "expired", "cancelled"}
    assert all(not NEXT[end] for end in ends)
    batch = batch_of("file-0")
    batch.move("in_progress", 5)
    assert batch.in_progress_at == 5
    with pytest.raises(IllegalTransition):
        batch.move("completed", 6)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("24h", 86400), ("1s", 1), ("30d", 2592000), ("31d", None), ("0h", None), ("h", None)),
        *(("24", None), ("24 h", None), ("-1h", None), ("9" * 5000 + "s", None), ("24h\n", None)),
    ],
)
def test_windows(text: str, seconds: int | None) -> None:
    assert window_s(text) == seconds


def batch_of(file_id: str, seconds: int = 3600) -> Batch:
    now_s = int(time.time())
    return Batch(
        id=new_batch_id(),
        endpoint=CHAT,
        input_file_id=file_id,
        completion_window="1h",
        created_at=now_s,
        expires_at=now_s + seconds,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "state") as store:
        yield store


def kept(store: Store, rows: list[Any]) -> FileObject:
    path = store.incoming()
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    file = FileObject(
        id=new_file_id(),
        bytes=path.stat().st_size,
        created_at=int(time.time()),
        filename="x",
        purpose="batch",
    )
    store.add_file(path, file)
    return file


def test_a_queue_of_batches_is_bounded_and_needs_its_input(store: Store) -> None:
    file = kept(store, [row("a", "x")])
    batches = [batch_of(file.id) for _ in range(3)]
    assert [store.add_batch(one, most=2) for one in batches] == [True, True, False]
    assert not store.remove_file(file)
    for one in batches[:2]:
        store.change(one.id, lambda batch: batch.move("failed", 1))
    assert store.remove_file(file)
    assert not store.path_of(file).exists()
    assert not store.add_batch(batch_of(file.id), most=2)


def test_what_a_change_raises_changes_nothing(store: Store, tmp_path: Path) -> None:
    file = kept(store, [row("a", "x")])
    batch = batch_of(file.id)
    store.add_batch(batch, most=1)

    def wrong(batch: Batch) -> None:
        batch.model = "other"
        batch.move("completed", 1)

    with pytest.raises(IllegalTransition):
        store.change(batch.id, wrong)
    assert store.batch(batch.id) == batch


def test_files_go_when_their_time_is_over(store: Store) -> None:
    file = kept(store, [row("a", "x")])
    path = store.incoming()
    path.write_text("x")
    short = FileObject(
        id=new_file_id(), bytes=1, created_at=0, filename="x", purpose="batch", expires_at=100
    )
    store.add_file(path, short)
    assert store.expired_files(99) == []
    assert store.expired_files(100) == [short]
    assert store.file(file.id) == file
    assert store.stored_bytes() == file.bytes + 1


@given(st.lists(st.sampled_from(["good", "bad", "none"]), max_size=30))
def test_each_row_is_in_one_file(tmp_path_factory: pytest.TempPathFactory, ends: list[str]) -> None:
    folder = tmp_path_factory.mktemp("results")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row(f"r{i}", "x")) + "\n" for i in range(len(ends))))
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    body = {"object": "chat.completion", "choices": [], "usage": usage}
    answers = []
    for index, end in enumerate(ends):
        if end == "bad":
            answers.append(line_of(error_object(index, f"r{index}", "body", "x")))
        if end == "good":
            value = {"id": f"batch_req_{index}", "custom_id": f"r{index}", "error": None}
            answers.append(line_of(value | {"response": {"status_code": 200, "body": body}}))
    good, bad = folder / "good", folder / "bad"
    written = write_results(answers, rows, len(ends), good, bad, code="gone", message="m")
    found = [[json.loads(line) for line in path.read_bytes().splitlines()] for path in (good, bad)]
    by_id = {one["custom_id"]: one for ones in found for one in ones}
    assert len(by_id) == len(found[0]) + len(found[1]) == len(ends)
    for index, end in enumerate(ends):
        error = by_id[f"r{index}"]["error"]
        assert {"good": None, "bad": "body", "none": "gone"}[end] == (error and error["code"])
    counts = written.counts
    assert (counts.total, counts.completed, counts.failed) == (
        len(ends),
        len(found[0]),
        len(found[1]),
    )
    assert (counts.input_tokens, counts.output_tokens) == (2 * len(found[0]), 3 * len(found[0]))
    assert (written.good_bytes, written.bad_bytes) == (good.stat().st_size, bad.stat().st_size)


def test_one_model_for_all_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [row("a", "x"), row("b", "x", model="other"), row("c", "x")]
    path.write_text("".join(json.dumps(one) + "\n\n" for one in lines))
    checked = check_lines(path, endpoint=CHAT, models=["tiny", "other"], most_rows=3)
    assert [(one.code, one.line) for one in checked.errors] == [("model_mismatch", 3)]
    assert (checked.rows, checked.model) == (3, "tiny")


class Bytes:
    """A tokenizer whose tokens are bytes."""

    vocab_size = 256

    def encode_texts(self, texts: Any) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def encode_conversations(self, conversations: Any) -> list[list[int]]:
        return [self.encode(str(one)) for one in conversations]


# What may stand in the place of a field's value.
ODD = st.sampled_from(
    [None, "", "a", "b", 0, 7, True, [], {}, {"model": "tiny"}, "POST", CHAT, "\ud800", "\u2028"]
)
GOOD = {"custom_id": "a", "method": "POST", "url": CHAT}


def line(name: str, body: dict[str, Any], more: dict[str, Any]) -> bytes:
    whole = {"custom_id": name, "body": {"model": "tiny", "messages": []} | body}
    return json.dumps(GOOD | whole | more).encode()


def some(*fields: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(fields), ODD, max_size=2)


BODIES = some("messages", "max_tokens", "n", "x")
TAKEN = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3),
    BODIES,
    min_size=1,
    max_size=6,
).map(lambda bodies: [line(name, body, {}) for name, body in bodies.items()])
ANY = st.lists(
    st.one_of(
        st.builds(line, st.text(max_size=3), BODIES | some("model"), some(*GOOD, "body", "more")),
        st.sampled_from([b"", b" ", b"{", b"\xff", b"[]", b'{"a":NaN}', b'{"a":1,"a":2}']),
        st.binary(max_size=20).filter(lambda one: b"\n" not in one),
    ),
    max_size=8,
)


@given(TAKEN | ANY)
def test_what_is_accepted_can_be_read_by_the_job(
    tmp_path_factory: pytest.TempPathFactory, found: list[bytes]
) -> None:
    """Two readers of the same lines: what the server takes holds only rows that the executor takes,
    or refuses for what is in their body."""
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in found))
    checked = check_lines(path, endpoint=CHAT, models=["tiny"], most_rows=100)
    rows = list(read_rows(path, Bytes(), RowLimits(max_context=1000)))
    if checked.errors:
        return
    assert checked.rows == len(rows) > 0
    assert [row.index for row in rows] == [index for index, _ in ids_of_rows(path)]
    for one, (_, custom_id) in zip(rows, ids_of_rows(path), strict=True):
        assert not isinstance(one, Answered)
        assert one.custom_id == custom_id
        if isinstance(one, BadRow):
            assert one.code in ("invalid_field", "unsupported_field", "missing_field")
            assert "custom_id" not in one.message
            assert "'body'" not in one.message


# -- the engine -----------------------------------------------------------------------------------


Runs = Callable[[Callable[[Task], None]], tuple[Engine, Clerk]]


@pytest.fixture
def runs(store: Store) -> Iterator[Runs]:
    """Starts engine and clerk with what runs a task."""
    started: list[tuple[Engine, Clerk]] = []

    def start(run: Callable[[Task], None]) -> tuple[Engine, Clerk]:
        said: list[str] = []
        engine = Engine(store, run, Turns(0.0), lambda: clerk.wake(), said.append)
        clerk = Clerk(store, engine, Limits(), ["tiny"], said.append)
        engine.start()
        clerk.start()
        started.append((engine, clerk))
        return engine, clerk

    yield start
    for engine, clerk in started:
        clerk.stop(10)
        assert engine.stop(10)


def answer_all(task: Task) -> None:
    lines = [line_of(error_object(0, "a", "body", "x"))]
    for line in lines:
        task.on_line(line)
    task.output.write_bytes(b"".join(line + b"\n" for line in lines))


def over(store: Store, batch: Batch) -> Batch:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = store.batch(batch.id)
        assert found is not None
        if found.is_finished:
            return found
        time.sleep(0.02)
    raise AssertionError(found)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no room", code="capacity"), "capacity"),
        (IllegalTransition("a bug"), "engine_error"),
        (ZeroDivisionError("a bug"), "engine_error"),
        (MemoryError(), "engine_error"),
    ],
)
def test_a_batch_that_cannot_go_on_fails_and_others_run(
    error: Exception, code: str, store: Store, runs: Runs
) -> None:
    calls = 0

    def run(task: Task) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        answer_all(task)

    file = kept(store, [row("a", "x")])
    first, second = batch_of(file.id), batch_of(file.id)
    store.add_batch(first, most=2)
    store.add_batch(second, most=2)
    runs(run)
    first, second = over(store, first), over(store, second)
    assert (first.status, second.status) == ("failed", "completed")
    assert [one.code for one in first.errors] == [code]
    assert second.error_file_id is not None
    # Its rows are told of all the same.
    told = store.file(first.error_file_id or "")
    assert told is not None
    assert json.loads(store.path_of(told).read_bytes())["error"]["code"] == "engine_error"


def test_a_full_disk_is_waited_for(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "HOLD_S", 0.1)
    calls = 0

    def run(task: Task) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Unfinished("cannot write", remedy="make room")
        answer_all(task)

    batch = batch_of(kept(store, [row("a", "x")]).id)
    store.add_batch(batch, most=1)
    runs(run)
    assert over(store, batch).status == "completed"
    assert calls == 3


def test_what_another_version_began_begins_anew(store: Store, runs: Runs) -> None:
    anew: list[bool] = []

    def run(task: Task) -> None:
        anew.append(task.anew)
        if not task.anew:
            raise UserError("another version", code="fingerprint")
        answer_all(task)

    batch = batch_of(kept(store, [row("a", "x")]).id)
    store.add_batch(batch, most=1)
    runs(run)
    assert over(store, batch).status == "completed"
    assert anew == [False, True]


def test_an_output_that_is_in_place_is_not_run_again(store: Store, runs: Runs) -> None:
    """As after a kill between the end of the job and the record of it."""
    batch = batch_of(kept(store, [row("a", "x")]).id)
    batch.counts.total = 1
    batch.move("in_progress", 1)
    store.add_batch(batch, most=1)
    folder = store.folder_of(batch)
    folder.mkdir()
    answers = folder / "answers.jsonl"
    answers.write_bytes(line_of(error_object(0, "a", "body", "x")) + b"\n")

    def run(task: Task) -> None:
        raise AssertionError

    runs(run)
    found = over(store, batch)
    assert (found.status, found.counts.failed) == ("completed", 1)
    until = time.monotonic() + 10  # what it worked with goes after its last state is kept
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not folder.exists()


def test_times_of_states_are_in_order(store: Store, runs: Runs) -> None:
    batch = batch_of(kept(store, [row("a", "x")]).id)
    store.add_batch(batch, most=1)
    runs(answer_all)
    found = over(store, batch)
    times = [found.created_at, found.in_progress_at, found.finalizing_at, found.completed_at]
    assert all(a is not None and b is not None and a <= b for a, b in pairwise(times))
