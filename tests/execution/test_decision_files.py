"""The decision log in a job's folder: each process's own, whole or as far as it came; never at the
price of an answer."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batch_jobs import job, long

from batchgen.cli import main
from batchgen.cli.exec_ending import report
from batchgen.errors import Unfinished
from batchgen.exec import attempt
from batchgen.exec.init import init_model
from batchgen.exec.run import Ended, execute
from batchgen.job.folder import default_folder, logs_in
from batchgen.logfile import LogFile, PackedLines

ROWS = [long(number) for number in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("logs") / "m", "qwen3", "tiny", seed=3)


@pytest.fixture(scope="module")
def folder_of_cuts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuts")


def stops_after(passes: int) -> Any:
    left = iter(range(passes))
    return lambda: next(left, None) is None


def names(folder: Path) -> list[str]:
    return [path.name for path in logs_in(folder)]


def replayed(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code = main(["validate", "replay", str(path), "--no-fresh", "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_process_of_a_job_leaves_its_decisions(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = job(model, tmp_path, ROWS, log="full")
    folder = default_folder(one.output)
    for resume in ("never", "always"):
        with pytest.raises(Unfinished):
            execute(replace(one, resume=resume), stopping=stops_after(20))
    assert names(folder) == ["decisions-1.jsonl.gz", "decisions-2.jsonl.gz"]
    code, told = replayed(folder, capsys)
    assert code == 1
    assert all(log["stops_early"] and log["events"] > 1 for log in told)
    ended = execute(replace(one, resume="always"))
    assert not folder.exists()
    run = tmp_path / "run"
    report(ended, run, force=False, as_json=False, quiet=True)
    assert names(run) == [*(f"decisions-{n}.jsonl.gz" for n in (1, 2)), "decisions.jsonl.gz"]
    assert [log["equal"] for log in replayed(run, capsys)[1]] == [False, False, True]


def test_by_default_the_log_can_be_replayed_and_goes_with_the_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = job(model, tmp_path, ROWS)
    found: list[tuple[int, list[dict[str, Any]]]] = []

    def deliver(ended: Ended) -> None:
        assert ended.record is not None
        assert ended.record.decisions is None
        found.append(replayed(default_folder(one.output), capsys))

    execute(one, deliver=deliver)
    ((code, (log,)),) = found
    assert (code, log["equal"], log["unfinished_rows"]) == (0, True, 0)
    assert not default_folder(one.output).exists()


@pytest.mark.parametrize("most", [-1, 0, 3])
def test_many_rows_have_a_log_of_steps(
    most: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and the keys of their pages are counted: the header of millions would be a log."""
    monkeypatch.setattr("batchgen.exec.prepare.MOST_REPLAYED", len(ROWS) + most)
    headers = []

    def deliver(ended: Ended) -> None:
        (path,) = logs_in(default_folder(tmp_path / "out.jsonl"))
        headers.append(json.loads(gzip.decompress(path.read_bytes()).splitlines()[0]))

    execute(job(model, tmp_path, ROWS), deliver=deliver)
    assert headers[0]["full"] is (most >= 0)
    assert headers[0]["page_keys"] is None


def test_without_a_log(model: Path, tmp_path: Path) -> None:
    one = job(model, tmp_path, ROWS, log="off")
    with pytest.raises(Unfinished):
        execute(one, stopping=stops_after(9))
    assert names(default_folder(one.output)) == []


def test_a_killed_process_leaves_a_log_that_stops_early(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = job(model, tmp_path, ROWS)
    script = f"""
import os, signal
from pathlib import Path
from batchgen.exec.job import ExecJob
from batchgen.exec.run import execute
from batchgen import logfile
logfile.FLUSH_S = 0.0
left = iter(range(30))
def stopping():
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
execute(
    ExecJob(
        model=Path({str(model)!r}), input=Path({str(one.input)!r}),
        output=Path({str(one.output)!r}),
        overrides={one.overrides!r}, threads=1, exact=True,
    ),
    stopping=stopping,
)
"""
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == -9
    (log,) = logs_in(default_folder(one.output))
    assert main(["validate", "replay", str(log.parent), "--no-fresh"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("equal so far: ")
    assert f"not whole: {log.name} stops early, with 8 rows unfinished: its process was" in err
    assert execute(replace(one, resume="always")).done == len(ROWS)


def test_a_disk_that_refuses_the_log_loses_no_answer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(attempt, "LogFile", lambda path, say: LogFile(Path("/dev/full"), say))
    assert execute(job(model, tmp_path, ROWS), say=told.append).done == len(ROWS)
    assert [line for line in told if "decision log" in line] == [
        "note: the decision log /dev/full ends here, the job goes on: No space left on device"
    ]


def test_a_log_ends_at_its_limit(model: Path, tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "x.jsonl.gz"
    with LogFile(path, told.append, most_bytes=1 << 20) as file:
        for _ in range(40):
            file.write(bytes(1 << 15))
    assert path.stat().st_size == 1 << 20
    assert len(told) == 1
    assert told[0].endswith("the job goes on: it has reached 1 MiB")
    with LogFile(tmp_path / "none" / "x.jsonl.gz", told.append) as file:
        file.write(b"x")
    assert told[1].endswith("No such file or directory")


@given(st.lists(st.binary(max_size=40), max_size=30), st.floats(0, 1))
def test_of_a_cut_file_whole_lines_come_back(
    folder_of_cuts: Path, texts: list[bytes], part: float
) -> None:
    lines = [text.hex().encode() for text in texts]
    packed = gzip.compress(b"".join(line + b"\n" for line in lines))
    size = 2 + round(part * (len(packed) - 2))
    path = folder_of_cuts / "cut.gz"
    path.write_bytes(packed[:size])
    found = PackedLines(path)
    assert list(found) == lines[: found.num_lines]
    assert found.is_cut is (size < len(packed))
    assert found.is_cut or found.num_lines == len(lines)
