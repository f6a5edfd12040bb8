"""A batch job seen from outside: how it stands, rows that go wrong, forms of its files."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchgen.errors import Unfinished, UserError
from batchgen.exec import watchdog, watching
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.run import execute
from batchgen.exec.survey import survey
from batchgen.exec.worker import Worker
from batchgen.job.error_limit import ErrorLimit
from batchgen.job.folder import default_folder
from batchgen.job.looking import lines_of, look_at
from batchgen.job.snapshot import Snapshot, snapshot_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("batch") / "m", "qwen3", "tiny", seed=3)


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def job(model: Path, folder: Path, rows: list[Any], **more: Any) -> ExecJob:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    values = {"model": model, "input": folder / "in.jsonl", "output": folder / "out.jsonl"}
    sizes = (("plan.page_tokens", "8"), ("plan.boundary", "8"), ("plan.max_num_seqs", "3"))
    return ExecJob(**(values | {"overrides": sizes, "threads": 1, "exact": True} | more))


def long(number: int, tokens: int = 40) -> dict[str, Any]:
    return {
        "custom_id": f"r{number}",
        "prompt": f"row {number}",
        "max_tokens": tokens,
        "ignore_eos": True,
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at every step."""
    monkeypatch.setattr(watching, "LEAST_REST", 0)
    monkeypatch.setitem(watching.Watcher.__init__.__kwdefaults__, "every_s", 0.0)


# -- standing still -----------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", [0, 3])
def test_a_pass_that_does_not_end_is_told_with_its_rows(
    decoding: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass hangs until it has been told twice; then the job ends as ever."""
    monkeypatch.setattr(watchdog, "PATIENCE_S", 0.2)
    monkeypatch.setattr(watchdog, "TIMES_LONGEST", 0)
    compute, told, hung = Worker.run_pass, [], []
    goes_on = threading.Event()

    def hangs(self: Worker, decodes: Any, chunks: Any) -> Any:
        if not hung and len(decodes) == decoding:
            hung.append([*decodes, *(chunk[0] for chunk in chunks)])
            told.clear()
            assert goes_on.wait(60)
        return compute(self, decodes, chunks)

    def say(line: str) -> None:
        told.append(line)
        if hung and sum("in the pass" in one for one in told) == 2:
            goes_on.set()

    monkeypatch.setattr(Worker, "run_pass", hangs)
    ended = execute(job(model, tmp_path, [long(number) for number in range(4)]), say=say)
    assert ended.done == 4
    names = ", ".join(f"'r{row}'" for row in hung[0])
    stood = [one for one in told if one.startswith("nothing has happened for ")]
    assert all(one.endswith(f"in the pass that does not end: {names}") for one in stood[:2])
    assert any(one.startswith("the run goes on, after ") for one in told)


def test_many_rows_in_a_pass_that_hangs_are_counted() -> None:
    told: list[str] = []
    dog = watchdog.Watchdog(told.append, lambda: [f"r{n}" for n in range(9)])
    assert dog._in_flight().endswith("'r0', 'r1', 'r2', 'r3', 'r4' and 4 more")
    assert watchdog.Watchdog(told.append, list)._in_flight() == "no row is in a pass"


# -- how it stands --------------------------------------------------------------------------------


def test_snapshots_tell_the_way_of_a_job(model: Path, tmp_path: Path, always: None) -> None:
    rows = [long(number, 20 + number) for number in range(12)]
    seen: list[Snapshot] = []
    folder = default_folder(tmp_path / "out.jsonl")
    states: list[str] = []

    def watch(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        found = json.loads((folder / "status.json").read_text())
        states.append(found["state"])
        assert snapshot_of(found).rows == 13

    execute(job(model, tmp_path, [*rows, "nonsense"]), watch=watch)
    assert len(seen) > 10
    assert states[-1] == "finishing"
    last = seen[-1]
    assert (last.rows, last.done, last.failed, last.earlier) == (13, 12, 1, 0)
    assert (last.running, last.waiting, last.left_s) == (0, 0, (0.0, 0.0))
    assert last.output_tokens == sum(20 + number for number in range(12))
    assert last.input_tokens >= sum(len(row["prompt"]) for row in rows)
    for one, two in pairwise(seen):
        assert one.done <= two.done
        assert one.output_tokens <= two.output_tokens
        assert one.elapsed_s <= two.elapsed_s
    for one in seen:
        assert 0 <= one.running <= 3
        assert 0 <= one.kv_use <= 1
        assert one.running + one.waiting <= 12
        assert one.left_s is None or 0 <= one.left_s[0] <= one.left_s[1]
        rounded = snapshot_of(one.as_json())
        assert snapshot_of(rounded.as_json()) == rounded
    phases = [one.phase for one in seen]
    order = ["fill", "steady", "tail"]
    assert phases == sorted(phases, key=order.index)
    assert set(phases) == set(order)
    assert not folder.exists()


def test_looks_take_a_small_part_of_any_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows beyond number and a terminal that is slow: rests follow that are longer still."""
    from batchgen.exec.clock import WallClock
    from batchgen.exec.drive import drive
    from batchgen.exec.driver import Driver
    from batchgen.exec.prepare import prepare

    prepared = prepare(job(model, tmp_path, [long(n, 30) for n in range(6)]))
    drivers: list[Driver] = []
    drive(prepared, WallClock(), begun=drivers.append)
    now = busy = 0.0
    told: list[Snapshot] = []

    def takes(seconds: float) -> None:
        nonlocal now, busy
        now += seconds
        busy += seconds

    def tell(snapshot: Snapshot) -> None:
        takes(0.03)
        told.append(snapshot)

    def left(load: object, pace: object) -> tuple[float, float]:
        takes(0.4)
        return 7.0, 1e9

    monkeypatch.setattr(watching, "left_s", left)
    watcher = watching.Watcher(
        drivers[0], rows=6, earlier=0, counts=lambda: (6, 0), tell=tell, clock=lambda: now
    )
    for _ in range(20_000):
        now += 0.05
        watcher.now_and_then(int(now * 1e12))
    assert 10 < len(told) < 4 * now
    assert busy < 0.01 * now
    assert watcher.spent_s == pytest.approx(busy)


def test_a_job_is_seen_by_others_while_it_runs_and_after_it_stopped(
    model: Path, tmp_path: Path, always: None
) -> None:
    one = job(model, tmp_path, [long(number, 30) for number in range(10)] + ["nonsense"])
    seen: list[tuple[str, int]] = []

    def watch(snapshot: Snapshot) -> None:
        standing = look_at(one.output)
        seen.append((standing.state, standing.done))
        answers = list(lines_of(one.output, "completion"))
        assert len(answers) >= standing.done + standing.failed
        assert all(json.loads(line)["custom_id"] for line, code in answers if not code)

    left = 60

    def stopping() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    with pytest.raises(Unfinished, match="of 11 rows are answered"):
        execute(one, watch=watch, stopping=stopping)
    assert {state for state, _ in seen[:-1]} == {"running"}
    found = look_at(default_folder(one.output))
    assert (found.state, found.rows, found.attempts, found.owner) == ("stopped", 11, 1, "")
    assert 0 < found.done < 10
    assert found.by_code["invalid_json"] == 1
    assert found.snapshot is not None
    assert found.snapshot.done == found.done
    execute(replace(one, resume="always"))
    done = look_at(one.output)
    assert (done.state, done.done, done.failed, done.rows) == ("done", 10, 1, 11)
    assert [line for line, _ in lines_of(one.output, "input")] == (
        one.output.read_bytes().splitlines()
    )


def test_what_is_no_job_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no output"):
        look_at(tmp_path / "none")
    with pytest.raises(UserError, match="not the folder of a job"):
        look_at(tmp_path)
    (tmp_path / "text").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="line 1 is no answer"):
        look_at(tmp_path / "text")


# -- rows that go wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("depth", ["1", "2"])
@pytest.mark.parametrize("policy", ["batchgen", "vllm", "static"])
def test_a_row_times_out_and_the_others_do_not_notice(
    policy: str, depth: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of 10 ms a look: rows of 200 tokens need more than the limit, others do not."""
    from batchgen.exec import attempt

    class Slow(attempt.WallClock):
        ticks = 0

        def now_ps(self) -> int:
            self.ticks += 1
            return self.ticks * 10**10

        def pass_done(self) -> int:
            return self.now_ps()

    rows = [long(number, 200 if number % 4 == 1 else 6) for number in range(9)]
    sizes = (("plan.page_tokens", "8"), ("plan.boundary", "8"), ("plan.depth", depth))
    more: dict[str, Any] = {"policy": policy, "overrides": sizes}
    whole = job(model, tmp_path, rows, output=tmp_path / "whole.jsonl", **more)
    execute(whole)
    monkeypatch.setattr(attempt, "WallClock", Slow)
    ended = execute(job(model, tmp_path, rows, row_timeout_s=1.5, **more))
    assert ended.by_code == {"": 7, "timeout": 2}
    want, got = read(whole.output), read(tmp_path / "out.jsonl")
    for number, (one, two) in enumerate(zip(want, got, strict=True)):
        if number % 4 == 1:
            assert two["error"] == {
                "code": "timeout",
                "message": "not ended 1.5 s after its first pass began",
            }
        else:
            assert one == two


def test_too_many_errors_stop_a_job_that_can_go_on(model: Path, tmp_path: Path) -> None:
    bad = [{"prompt": 5}, {"prompt": ""}, "nonsense"]
    rows = [long(0), bad[0], long(1), bad[1], long(2), bad[2], long(3)]
    for limit, stops in (
        (ErrorLimit(rows=2), True),
        (ErrorLimit(rows=3), False),
        (ErrorLimit(rows=0), True),
        (ErrorLimit(part=0.4), True),
        (ErrorLimit(part=0.5), False),
    ):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        one = job(model, tmp_path, rows, max_errors=limit)
        if not stops:
            assert execute(one).errors == 3
            continue
        with pytest.raises(Unfinished, match="have failed, more than --max-errors"):
            execute(one)
        more = replace(one, resume="always")
        assert not one.output.exists()
        with pytest.raises(Unfinished, match="have failed"):
            execute(more)  # nothing has become better
        ended = execute(replace(more, max_errors=None))
        assert (ended.done, ended.errors) == (4, 3)


SHORT = "[enforce fail] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize("ever", [False, True])
def test_rows_for_which_memory_is_short_are_tried_again_alone(
    ever: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others they are set aside. Alone they end as they would have, or fail by name; then a
    limit of errors counts them, and the job goes on without one."""
    from batchgen.exec.worker import Worker

    rows = [long(number, 40 if number % 3 == 1 else 10) for number in range(7)]
    whole = job(model, tmp_path, rows, output=tmp_path / "whole.jsonl")
    execute(whole)
    forward = Worker._forward

    def short(worker: Worker, decodes: Any, chunks: Any) -> Any:
        some = [*decodes, *(row for row, _, _, _ in chunks)]
        beside = int((worker._hbm.tables.counts > 0).sum()) > 1
        if any(worker.rows.num_produced(row) == 20 for row in some) and (ever or beside):
            raise RuntimeError(SHORT)
        return forward(worker, decodes, chunks)

    monkeypatch.setattr(Worker, "_forward", short)
    one = job(model, tmp_path, rows, max_errors=ErrorLimit(rows=0))
    if not ever:
        ended = execute(one)
        assert (ended.done, ended.errors) == (7, 0)
        assert one.output.read_bytes() == whole.output.read_bytes()
        return
    with pytest.raises(Unfinished, match="1 rows of 7 have failed"):
        execute(one)
    ended = execute(replace(one, max_errors=None, resume="always"))
    assert ended.by_code == {"": 5, "out_of_memory": 2}
    want, got = read(whole.output), read(one.output)
    for number, (first, second) in enumerate(zip(want, got, strict=True)):
        if number % 3 == 1:
            assert second["error"]["code"] == "out_of_memory"
        else:
            assert first == second


def test_requests_of_failed_rows_are_an_input_of_their_own(model: Path, tmp_path: Path) -> None:
    """Once mended, their answers are what they would have been, by the same ids."""
    good = {"prompt": "zero", "max_tokens": 9, "temperature": 0.9, "ignore_eos": True}
    spoilt = good | {"max_tokens": 10**6}
    batch = {"custom_id": "b", "url": "/v1/completions", "body": spoilt}
    rows = [good, spoilt, batch, '{"prompt": }', good]
    one = job(model, tmp_path, rows, error_file=tmp_path / "failed.jsonl")
    assert execute(one).by_code == {"": 2, "context_length_exceeded": 2, "invalid_json": 1}
    failed = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert json.loads(failed[0]) == {"custom_id": "line-2"} | spoilt
    assert failed[1:] == [json.dumps(batch), '{"prompt": }']
    mended = "\n".join(failed[:2]).replace("1000000", "9")
    (tmp_path / "again.jsonl").write_text(mended + "\n")
    again = replace(
        one, input=tmp_path / "again.jsonl", output=tmp_path / "two.jsonl", error_file=None
    )
    assert execute(again).errors == 0
    whole = job(
        model,
        tmp_path,
        [good, good, batch | {"body": good}, good],
        output=tmp_path / "whole.jsonl",
    )
    execute(whole)
    texts = [row["response"]["body"]["choices"][0]["text"] for row in read(whole.output)]
    got = [row["response"]["body"]["choices"][0]["text"] for row in read(again.output)]
    assert got == texts[1:3]
    with pytest.raises(UserError, match="is the input"):
        execute(replace(again, error_file=again.input, force=True))


def test_answers_as_parquet(model: Path, tmp_path: Path) -> None:
    rows = [long(0, 5) | {"n": 2}, "nonsense", {"messages": [{"role": "user", "content": "a"}]}]
    execute(job(model, tmp_path, rows))
    two = job(model, tmp_path, rows, output=tmp_path / "o.parquet", output_form="parquet")
    execute(two)
    first = two.output.read_bytes()
    table = pq.read_table(two.output).to_pylist()
    assert [json.loads(row["object"]) for row in table] == read(tmp_path / "out.jsonl")
    assert [row["row"] for row in table] == [0, 1, 2]
    assert len(table[0]["texts"]) == 2
    assert table[0]["text"] == table[0]["texts"][0]
    assert table[0]["completion_tokens"] == 10
    assert (table[1]["text"], table[1]["error_code"]) == (None, "invalid_json")
    execute(replace(two, force=True))
    assert two.output.read_bytes() == first


def test_shards_are_the_whole(model: Path, tmp_path: Path) -> None:
    """Together they are the rows of the whole job, with the ids that they have there."""
    rows = [long(0, 5), "x", long(2, 5), long(0, 5), {"prompt": "e", "temperature": 0.8}, long(5)]
    whole = job(model, tmp_path, rows)
    execute(whole)
    parts = []
    for number in (1, 2, 3, 4):
        one = replace(whole, output=tmp_path / f"{number}.jsonl", shard=(number, 4))
        if number == 2:
            with pytest.raises(Unfinished):
                execute(one, stopping=lambda: True)
            with pytest.raises(UserError, match="another shard"):
                execute(replace(one, resume="always", shard=(3, 4)))
            one = replace(one, resume="always")
        ended = execute(one)
        assert ended.rows == (2 if number < 3 else 1)
        parts.append(one.output.read_bytes().splitlines())
    want = whole.output.read_bytes().splitlines()
    assert [want[number::4] for number in range(4)] == parts
    with pytest.raises(UserError, match="no rows of shard 7/7"):
        execute(replace(whole, output=tmp_path / "7", shard=(7, 7)))


# -- before it runs -------------------------------------------------------------------------------


def test_a_survey_is_what_the_run_then_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchgen.exec import prepare as prepare_module
    from batchgen.exec import transformer

    rows = [long(0, 9), "nonsense", {"prompt": "two" * 30}, {"prompt": 7}, long(3, 4) | {"n": 2}]
    one = job(model, tmp_path, rows)
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "load_model", None)  # no weights are loaded
        patch.setattr("batchgen.exec.worker.load_model", None)
        found = survey(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert found.bad.counts == {"invalid_json": 1, "invalid_field": 1}
    assert [row.line for row in found.bad.first["invalid_field"]] == [4]
    assert found.first_prompt == "row 0"
    prepared = prepare_module.prepare(one)
    assert found.plan == prepared.plan
    assert found.prompt_tokens.tolist() == prepared.jobs.prompt_tokens().tolist()
    assert found.max_output.tolist() == prepared.jobs.max_output().tolist()
    assert found.page_keys == prepared.page_keys


def test_a_survey_of_nothing_that_runs(model: Path, tmp_path: Path) -> None:
    found = survey(job(model, tmp_path, ["a", "b"]))
    assert found.plan is None
    assert found.bad.counts.total() == found.read.num_rows == 2
