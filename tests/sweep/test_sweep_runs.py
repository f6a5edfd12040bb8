"""Sweeps as a whole: the same table however many processes, kills and interrupts there were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.report.metrics import summary
from batchgen.report.tail import CAUSES, column
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.sweep.journal import Journal

SMALL = """\
trace: trace.jsonl
rows: 30
model: llama-3.1-8b
gpu: h100
gpus: [2, 4]
layouts: [rule, tp4]
policies: [static, vllm, batchgen]
devices:
  healthy: null
  slow: [{at_s: 0, kind: slow, gpu: a, factor: 3}]
seeds: 2
"""
NUM_RUNS = 2 * 2 * 3 * 2 * 2


def sweep_file(folder: Path, text: str = SMALL, output: int = 60) -> str:
    lines = [
        json.dumps({"prompt_tokens": 20 + i, "output_tokens": 5 + i * 7 % output})
        for i in range(60)
    ]
    (folder / "trace.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "small.yaml"
    path.write_text(text)
    return str(path)


def run(path: str, out: Path, *more: str) -> int:
    return main(["sweep", path, "--out", str(out), "--progress", "off", *more])


def test_one_worker_and_two_give_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file(tmp_path)
    for workers in ("1", "2"):
        # tp4 does not fit two GPUs: a row with an error, the others go on.
        assert run(path, tmp_path / workers, "--workers", workers) == 1
        table = capsys.readouterr().out
        assert "2 of 2 runs: " in table
    one, two = (tmp_path / workers for workers in ("1", "2"))
    for name in ("runs.parquet", "table.md", "sweep.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    rows = pq.read_table(one / "runs.parquet").to_pylist()
    assert len(rows) == NUM_RUNS
    wrong = [row for row in rows if row["error"]]
    assert {(row["gpus"], row["layout_asked"]) for row in wrong} == {(2, "tp4")}
    assert all(row["bct_s"] is None for row in wrong)
    for row in rows:
        if not row["error"]:
            parts = [row[column(cause)] or 0.0 for cause in CAUSES]
            assert sum(parts) == pytest.approx(row["tail10_s"])
    times = {row["bct_s"] for row in rows if row["policy"] == "vllm" and row["gpus"] == 4}
    assert len(times) > 2  # layouts, troubles, seeds
    # Again: nothing is left to do, and nothing changes.
    before = (one / "runs.jsonl").read_bytes(), (one / "runs.parquet").read_bytes()
    assert run(path, one) == 1
    assert before == ((one / "runs.jsonl").read_bytes(), (one / "runs.parquet").read_bytes())
    # Another seed: only its runs are new.
    sweep_file(tmp_path, SMALL.replace("seeds: 2", "seeds: [0, 1, 5]"))
    assert run(path, one) == 1
    old, new = before[0].splitlines(), (one / "runs.jsonl").read_bytes().splitlines()
    assert new[: len(old)] == old
    assert len(new) == NUM_RUNS * 3 // 2


def test_a_run_is_what_the_simulator_gives(tmp_path: Path) -> None:
    text = SMALL.replace("rows: 30\n", "").replace("seeds: 2", "seeds: 1")
    assert run(sweep_file(tmp_path, text), tmp_path / "out", "--workers", "1") == 1
    rows = pq.read_table(tmp_path / "out" / "runs.parquet").to_pylist()
    row = next(r for r in rows if (r["policy"], r["gpus"], r["devices"]) == ("vllm", 4, "slow"))
    job = SimJob(
        trace=str(tmp_path / "trace.jsonl"),
        model="llama-3.1-8b",
        gpu="h100",
        gpus=4,
        policy="vllm",
        faults=str(tmp_path / "out" / "devices" / "slow-4-gpus-seed-0.jsonl"),
    )
    found = summary(simulate(job))
    shared = [name for name in found if name in row and name != "policy"]
    assert len(shared) > 40
    assert {name: row[name] for name in shared} == {name: found[name] for name in shared}


def test_the_trace_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads it says so in a file, in whatever process."""
    from batchgen.trace import schema

    told, real = tmp_path / "loads", schema.load

    def load(*args: Any, **more: Any) -> Any:
        with told.open("a") as file:
            file.write("x")
        return real(*args, **more)

    monkeypatch.setattr(schema, "load", load)
    monkeypatch.setattr("batchgen.sim.run.load", load)
    monkeypatch.setattr("batchgen.machine.load", load)
    text = SMALL.replace("seeds: 2", "seeds: 4").replace("layouts: [rule, tp4]\n", "")
    assert run(sweep_file(tmp_path, text), tmp_path / "out", "--workers", "2") == 0
    assert len((tmp_path / "out" / "runs.jsonl").read_bytes().splitlines()) == 48
    assert told.read_text() == "x"


def started(path: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "batchgen", "sweep", path, "--out", str(out)]
    return subprocess.Popen(
        [*command, "--workers", "2", *more], stderr=subprocess.PIPE, text=True, stdout=-3
    )


def wait_for_lines(path: Path, number: int) -> None:
    for _ in range(6000):
        if path.is_file() and path.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.005)
    raise AssertionError("no run was finished in 30 s")


LONG_RUNS = 720
LONG = SMALL.replace("seeds: 2", "seeds: 60").replace("layouts: [rule, tp4]\n", "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(sweep_file(folder, LONG), folder / "out") == 0
    return folder / "out"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_goes_on_after_its_end(tmp_path: Path, whole: Path, how: signal.Signals) -> None:
    path = sweep_file(tmp_path, LONG)
    for attempt in range(5):  # on a busy machine it may have ended before the signal comes
        out = tmp_path / f"cut{attempt}"
        process = started(path, out)
        wait_for_lines(out / "runs.jsonl", 10)
        process.send_signal(how)
        _, talk = process.communicate(timeout=60)
        if not (out / "runs.parquet").exists():
            break
    if how != signal.SIGKILL:
        assert process.returncode == 3
        assert "runs are left; the same command goes on" in talk
        assert talk.endswith("interrupted\n")
    done = (out / "runs.jsonl").read_bytes()
    assert 10 <= done.count(b"\n") < LONG_RUNS
    assert not (out / "runs.parquet").exists()
    if how == signal.SIGKILL:  # a line that was cut does not count
        with (out / "runs.jsonl").open("ab") as file:
            file.write(b'{"key": "half')
    assert run(path, out) == 0
    assert (out / "runs.jsonl").read_bytes().startswith(done)
    for name in ("runs.parquet", "table.md"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_worker_that_dies_costs_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deadly(job: SimJob, **more: Any) -> Any:
        if (job.policy, job.gpus, job.seed, job.faults) == ("static", 2, 0, None):
            os.kill(os.getpid(), signal.SIGKILL)
        return simulate(job, **more)

    text = SMALL.replace("layouts: [rule, tp4]\n", "")
    path, out = sweep_file(tmp_path, text), tmp_path / "out"
    monkeypatch.setattr("batchgen.sim.run.simulate", deadly)
    assert run(path, out) == 1
    assert "static: 1 of 2 runs: not finished, its process was ended by signal 9" in (
        capsys.readouterr().out
    )
    monkeypatch.undo()
    assert run(path, out) == 0  # it is tried again
    assert run(path, tmp_path / "whole") == 0
    assert (out / "runs.parquet").read_bytes() == (tmp_path / "whole/runs.parquet").read_bytes()


def test_whatever_a_run_raises_is_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(job: SimJob, **more: Any) -> Any:
        if job.policy == "static":
            raise UserError("too\nlate", remedy="never")
        if job.policy == "vllm":
            raise ZeroDivisionError
        print("hello")
        return simulate(job, **more)

    monkeypatch.setattr("batchgen.sim.run.simulate", broken)
    text = SMALL.replace("layouts: [rule, tp4]\n", "").replace("seeds: 2", "seeds: 1")
    assert run(sweep_file(tmp_path, text), tmp_path / "out", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["sweep"] == "small"
    errors = {row["policy"]: row["error"] for row in document["runs"]}
    assert errors == {
        "static": "too late; never",
        "vllm": "internal error: ZeroDivisionError",
        "batchgen": "",
    }


def test_folders_that_are_no_sweeps_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = sweep_file(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("")
    assert run(path, out, "--force") == 2
    assert "is not empty and no sweep's" in capsys.readouterr().err
    (out / "mine").unlink()
    with Journal(out):
        done = started(path, out)
        _, talk = done.communicate(timeout=60)
    assert done.returncode == 2
    assert "another sweep writes" in talk
    assert run(sweep_file(tmp_path, SMALL.replace("rows: 30", "rows: 61")), out) == 2
    assert "field 'rows': 61 of a trace of 60 rows" in capsys.readouterr().err


def test_rows_fail_a_sweep_but_do_not_stop_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = "  lost: [{at_s: 0.01, kind: lost, gpu: 0}, {at_s: 0.01, kind: lost, gpu: 1}]\n"
    text = SMALL.replace("layouts: [rule, tp4]\n", "").replace("seeds: 2\n", lost)
    text = text.replace("gpus: [2, 4]", "gpus: 2")
    assert run(sweep_file(tmp_path, text), tmp_path / "out") == 1
    assert "lost, vllm: 30 rows failed" in capsys.readouterr().out
