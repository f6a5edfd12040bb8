"""`run_batch` and `iter_batch`: the same answers as the command line, typed; stopped and gone on
with."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

import batchgen
from batchgen.cli import main
from batchgen.errors import Unfinished, UserError
from batchgen.exec.init import init_model

ROWS: list[dict[str, Any]] = [
    {"custom_id": "a", "prompt": "hello", "max_tokens": 5, "ignore_eos": True},
    {"custom_id": "b", "prompt": "x", "n": 2, "temperature": 1, "max_tokens": 4},
    {"custom_id": "c", "prompt": ""},
    {
        "custom_id": "d",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"input": "hi", "max_output_tokens": 3},
    },
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("api") / "m", "qwen3", "tiny", seed=3)


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def test_the_answers_of_the_command_line(model: Path, tmp_path: Path) -> None:
    found = batchgen.run_batch(model, ROWS, exact=True, threads=1)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["exec", "--model", str(model), "-i", str(path), "-o", str(tmp_path / "out")]
    assert main([*command, "--exact", "--threads", "1", "--progress", "off"]) == 1
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row.raw for row in found.rows] == lines
    assert found.counts == {"rows": 4, "done": 3, "failed": 1}
    assert found.manifest["failed_by_code"] == {"empty_prompt": 1}
    assert found.summary is not None
    a, b, c, d = found.rows
    assert (a.custom_id, a.ok, len(a.texts), a.finish_reasons) == ("a", True, 1, ("length",))
    assert (a.prompt_tokens, a.completion_tokens) == (5, 5)
    assert (len(b.texts), b.completion_tokens <= 8) == (2, True)
    assert (c.ok, c.code, c.texts) == (False, "empty_prompt", ())
    with pytest.raises(UserError, match="row 2 has no answer: empty_prompt"):
        _ = c.text
    assert d.text == d.raw["response"]["body"]["output"][0]["content"][0]["text"]


def test_rows_as_they_finish(model: Path) -> None:
    async def collect() -> list[batchgen.RowResult]:
        return [row async for row in batchgen.iter_batch(model, ROWS, exact=True, threads=1)]

    found = asyncio.run(collect())
    whole = batchgen.run_batch(model, ROWS, exact=True, threads=1)
    assert sorted(row.index for row in found) == [0, 1, 2, 3]
    assert sorted(found, key=lambda row: row.index) == list(whole.rows)


def test_who_stops_listening_goes_on_later(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"row {n}", "max_tokens": 3 + 9 * n, "ignore_eos": True} for n in range(12)]
    options: batchgen.api.BatchOptions = {"exact": True, "threads": 1}
    whole = batchgen.run_batch(model, rows, **options)
    seen: list[int] = []

    async def some() -> None:
        stream = batchgen.iter_batch(model, rows, tmp_path / "out", **options)
        async for row in stream:
            seen.append(row.index)
            if len(seen) == 2:
                break
        await stream.aclose()

    asyncio.run(some())
    assert len(seen) == 2
    assert not (tmp_path / "out").exists()

    async def rest() -> list[batchgen.RowResult]:
        stream = batchgen.iter_batch(model, rows, tmp_path / "out", resume="always", **options)
        return [row async for row in stream]

    found = asyncio.run(rest())
    assert [row.index for row in found[:2]] == seen
    assert sorted(found, key=lambda row: row.index) == list(whole.rows)


def test_mistakes_are_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run_batch has no option 'temprature'; choose among"):
        batchgen.run_batch(model, ROWS, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(UserError, match="row 0 is no JSON object"):
        batchgen.run_batch(model, [{"prompt": {1}}])
    with pytest.raises(UserError, match="does not exist"):
        batchgen.run_batch(model, tmp_path / "none.jsonl")

    async def one() -> None:
        async for _ in batchgen.iter_batch(tmp_path, ROWS):
            pass

    with pytest.raises(UserError):
        asyncio.run(one())
    assert issubclass(Unfinished, UserError)


def test_options_that_cannot_be(model: Path, tmp_path: Path) -> None:
    """Said before anything runs, not when all rows are answered."""
    output = tmp_path / "out.jsonl"
    wrong: list[tuple[batchgen.api.BatchOptions, str]] = [
        ({"order": "completed"}, "^order is 'completed'; choose one of input, completion"),
        ({"max_tokens": 0}, "^max_tokens is 0"),
        ({"limit": 0}, "^limit is 0"),
    ]
    for options, why in wrong:
        with pytest.raises(UserError, match=why):
            batchgen.run_batch(model, ROWS, output, **options)
        assert not list(tmp_path.iterdir())


def test_a_table(model: Path, tmp_path: Path) -> None:
    """The name of the output says its form, as on the command line; results are the same."""
    pq = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "out.parquet"
    found = batchgen.run_batch(
        model, ROWS, output, exact=True, threads=1, folder=str(tmp_path / "job"), order="completion"
    )
    table = pq.read_table(output)
    objects = [json.loads(text) for text in table["object"].to_pylist()]
    assert sorted(table["row"].to_pylist()) == [0, 1, 2, 3]
    assert [row.raw for row in found.rows] == sorted(objects, key=lambda one: str(one["id"]))


def test_who_is_cancelled_twice_waits_for_the_job_all_the_same(model: Path, tmp_path: Path) -> None:
    # The first row ends long before the others, so that there is a job left to cancel.
    rows = [
        {"prompt": f"row {n}", "max_tokens": 300 if n else 4, "ignore_eos": True} for n in range(12)
    ]
    output = tmp_path / "out.jsonl"

    async def cancelled() -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async for _ in batchgen.iter_batch(model, rows, output, exact=True, threads=1):
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert not [one for one in threading.enumerate() if one.name == "batchgen"]
    result = batchgen.run_batch(model, rows, output, exact=True, threads=1, resume="if-possible")
    assert result.counts["done"] == 12


@pytest.mark.parametrize("dropped", [True, False])
def test_who_leaves_the_loop_stops_the_job_in_silence(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    dropped: bool,
) -> None:
    """With `break`, as docs/python.md has it, and where the event loop is closed before the stream
    is dropped: the thread ends, prints nothing, and what it did is there to go on with."""
    rows = [{"prompt": f"row {n}", "max_tokens": 5 + 20 * n, "ignore_eos": True} for n in range(8)]
    output = tmp_path / "out.jsonl"
    kept: list[batchgen.api.RowStream] = []
    real, closed = batchgen.api._execute, threading.Event()

    def late(*args: Any, **kwargs: Any) -> Any:
        try:
            return real(*args, **kwargs)
        finally:  # what is said last is said to a loop that may be gone
            closed.wait(0.3 if dropped else 30)

    monkeypatch.setattr(batchgen.api, "_execute", late)
    broken: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)

    async def first() -> None:
        if not dropped:
            kept.append(batchgen.iter_batch(model, rows, output, exact=True, threads=1))
        async for _ in (
            kept[0] if kept else batchgen.iter_batch(model, rows, output, exact=True, threads=1)
        ):
            break

    asyncio.run(first())
    left = [one for one in threading.enumerate() if one.name == "batchgen"]
    assert len(left) == (0 if dropped else 1)
    closed.set()
    for one in left:
        one.join()
    assert not broken
    assert capfd.readouterr().err == ""
    assert not output.exists()
    result = batchgen.run_batch(model, rows, output, exact=True, threads=1, resume="always")
    assert result.counts == {"rows": 8, "done": 8, "failed": 0}


def test_a_slow_listener_holds_the_job_up_and_not_the_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more results are made than fit; who leaves then can go on later."""
    monkeypatch.setattr(batchgen.api, "MOST_HELD", 4)
    made: list[int] = []
    make = batchgen.api.row_result

    def counted(line: bytes) -> Any:
        made.append(1)
        return make(line)

    monkeypatch.setattr(batchgen.api, "row_result", counted)
    rows = [{"prompt": f"row {n}", "max_tokens": 2, "ignore_eos": True} for n in range(40)]
    output = tmp_path / "out.jsonl"
    options: dict[str, Any] = {"threads": 1, "overrides": {"plan.max_num_seqs": "2"}}

    async def slow() -> None:
        got = 0
        async for _ in batchgen.iter_batch(model, rows, output, **options):
            got += 1
            while len(made) < got + 4:  # the job goes on until it is full
                await asyncio.sleep(0.01)
            for _ in range(10):
                await asyncio.sleep(0.01)
                assert len(made) == got + 4
            if got == 3:
                break

    asyncio.run(slow())
    assert not output.exists()
    result = batchgen.run_batch(model, rows, output, resume="always", **options)
    assert result.counts == {"rows": 40, "done": 40, "failed": 0}
    assert [row.index for row in result.rows] == list(range(40))


def test_options_of_files_and_limits(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("id,q,x\n" + "".join(f"r{n},text {n},y\n" for n in range(6)) + "bad\n")
    result = batchgen.run_batch(
        model,
        str(table),
        tmp_path / "out.jsonl",
        prompt_template="{q} {x}",
        shard=(1, 2),
        max_tokens=3,
        row_timeout=600.0,
        max_errors=5,
        error_file=str(tmp_path / "failed.jsonl"),
        manifest=tmp_path / "manifest.json",
        served_model_name="m1",
        threads=1,
    )
    assert [row.custom_id for row in result.rows] == ["r0", "r2", "r4", None]
    assert [row.code for row in result.rows] == ["", "", "", "invalid_csv"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == result.manifest
    wrong: list[tuple[batchgen.api.BatchOptions, str]] = [
        ({"shard": "3/2"}, "^shard is '3/2'"),
        ({"shard": (3, 2)}, "^shard is '3/2'"),
        ({"row_timeout": 0}, "^row_timeout is 0"),
        ({"max_errors": "x"}, "^max_errors is 'x'"),
        ({"prompt_column": "q", "prompt_template": "{q}"}, "^prompt_column and prompt_template"),
        ({"input_format": "xml"}, "^input_format is 'xml'"),
        ({"error_file": tmp_path / "failed.jsonl"}, "failed.jsonl exists"),
    ]
    for options, why in wrong:
        with pytest.raises(UserError, match=why):
            batchgen.run_batch(model, table, tmp_path / "other.jsonl", **options)
    with pytest.raises(Unfinished):
        batchgen.run_batch(model, [{"prompt": ""}], tmp_path / "c.jsonl", max_errors=0)
    rows = [{"prompt": "a", "model": name} for name in ("m1", "m")]
    named = batchgen.run_batch(model, rows, served_model_name="m1", max_tokens=2, threads=1)
    assert [row.code for row in named.rows] == ["", "model_not_found"]
    with pytest.raises(Unfinished, match="nothing is kept") as found:
        batchgen.run_batch(model, [{"prompt": "a"}, {"prompt": ""}], max_errors=0, threads=1)
    assert "/" not in found.value.message


def test_a_row_that_takes_too_long_is_an_error_row(model: Path) -> None:
    rows = [{"prompt": "a", "max_tokens": 100, "ignore_eos": True}]
    result = batchgen.run_batch(model, rows, threads=1, row_timeout=1e-9)
    assert [row.code for row in result.rows] == ["timeout"]
