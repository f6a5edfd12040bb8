"""Request logs of vLLM with the prefixes of their workload, and the runs that are shipped."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.engines.recorded import find_recorded, read_recorded
from batchgen.errors import DataError, UserError
from batchgen.trace import load
from batchgen.trace.formats.registry import import_trace

SHIPPED = Path(__file__).parents[2] / "traces" / "engines"
META: dict[str, Any] = {
    "engine_kwargs": {
        "model": "Qwen/Qwen3-30B-A3B-Instruct-2507",
        "tensor_parallel_size": 1,
        "data_parallel_size": 2,
        "enable_expert_parallel": True,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
    },
    "started_at": "2026-04-25T18:47:18Z",
}
START = 1777142838.0  # the same second


def request(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "input_toks": 40 + number,
        "output_toks": 5,
        "arrival_time": START + 0.5 + number,
        "queued_ts": 100.0 + number + (0.25 if number else 0.0),
        "scheduled_ts": 100.5 + number,
        "first_token_ts": 101.0 + number,
        "last_token_ts": 103.0 + number,
    } | changed


def workload(number: int, **changed: Any) -> dict[str, Any]:
    row = {"input_toks": 40 + number, "output_toks": 5, "arrival_time_ns": number}
    return row | {"hash_ids": [0, number + 1]} | changed


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_run(
    folder: Path,
    requests: list[dict[str, Any]] | None = None,
    workloads: list[dict[str, Any]] | None = None,
    meta: Any = META,
) -> tuple[Path, Path]:
    """A run of three requests and its workload."""
    run = folder / "RTXPRO6000__Qwen3-30B-A3B"
    run.mkdir(parents=True)
    (run / "requests.jsonl").write_text(lines(requests or [request(i) for i in range(3)]))
    (run / "meta.json").write_text(json.dumps(meta))
    (run / "timeseries.csv").write_text("t,running,waiting\n1.0,2,0\n2.0,3,1\n")
    file = folder / "w.hash16.jsonl"
    file.write_text(lines(workloads or [workload(i) for i in range(3)]))
    return run, file


def test_one_command_keeps_the_shared_prefixes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, prefixes = write_run(tmp_path)
    target = tmp_path / "x.jsonl"
    command = ["trace", "import", str(run), "--prefixes", str(prefixes), "-o", str(target)]
    assert main(command) == 0
    capsys.readouterr()
    trace = load(target)
    assert trace.prefix_block_tokens == 16
    assert trace.prefix_blocks.tolist() == [0, 1, 0, 2, 0, 3]
    assert trace.arrival_ps.tolist() == [0, 10**12, 2 * 10**12]  # of the log, not of the workload
    assert trace.ids == ("r0", "r1", "r2")
    assert trace.meta["prefixes"] == "w.hash16.jsonl"


def test_a_log_alone_and_a_compressed_one(tmp_path: Path) -> None:
    run, prefixes = write_run(tmp_path)
    assert import_trace(run).prefix_blocks.size == 0
    plain = import_trace(run, prefixes=prefixes, limit=2)
    log = run / "requests.jsonl"
    (run / "requests.jsonl.gz").write_bytes(gzip.compress(log.read_bytes()))
    log.unlink()
    packed = import_trace(run, prefixes=prefixes, limit=2)
    np.testing.assert_array_equal(packed.prefix_blocks, plain.prefix_blocks)
    assert len(packed) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([workload(0), workload(1, input_toks=99), workload(2)], "row 1 has 99"),
        ([workload(0), workload(1), workload(2, output_toks=6)], "row 2 has 6"),
        ([workload(0), workload(1)], "2 rows, and"),
        ([workload(i, hash_ids=[]) for i in range(3)], "no row has prefix blocks"),
        ([workload(0, hash_ids="x"), workload(1), workload(2)], "expected a list"),
        ([workload(0, hash_ids=list(range(9))), workload(1), workload(2)], "9 blocks"),
    ],
)
def test_the_workload_of_another_run(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    run, prefixes = write_run(tmp_path, workloads=rows)
    with pytest.raises(UserError, match=message) as caught:
        import_trace(run, prefixes=prefixes)
    assert "w.hash16.jsonl" in str(caught.value)


def test_a_run_is_read_on_one_clock(tmp_path: Path) -> None:
    write_run(tmp_path)
    (run,) = find_recorded(tmp_path)
    assert run.settings.layout == "tp1+dpa2+ep2"
    assert (run.settings.gpus, run.settings.model) == (2, "qwen3-30b-a3b")
    assert run.workload == "w.hash16.jsonl"
    assert run.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert run.first_s.tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert run.curve_s.tolist() == pytest.approx([0.5, 1.5])
    assert run.measured() == pytest.approx(
        {
            "bct_s": 5.0,
            "output_tokens_per_s": 3.0,
            "mean_latency_s": 3.0,
            "mean_tpot_s": 0.5,
            "mean_ttft_s": 1.0,
        }
    )


def test_a_run_whose_workload_is_not_there(tmp_path: Path) -> None:
    folder, _ = write_run(tmp_path, workloads=[workload(i, input_toks=9) for i in range(3)])
    run = read_recorded(folder, [tmp_path / "w.hash16.jsonl"])
    assert (run.workload, run.trace.prefix_blocks.size) == ("", 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"queued_ts": None}, "requests.jsonl:2: field 'queued_ts': expected seconds"),
        ({"first_token_ts": True}, "requests.jsonl:2: field 'first_token_ts': expected seconds"),
        ({"last_token_ts": 1e300}, "requests.jsonl:2: field 'last_token_ts': 1e\\+300 seconds"),
        ({"last_token_ts": 1.0}, "field 'last_token_ts': before its predecessor"),
        ({"input_toks": -1}, "requests.jsonl:2: field 'input_toks'"),
        ({"output_toks": 0}, "2 of 3 requests are usable"),
    ],
)
def test_a_bad_request(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write_run(tmp_path, requests=[request(0), request(1, **changed), request(2)])
    with pytest.raises(DataError, match=message):
        find_recorded(tmp_path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "field 'engine_kwargs': missing"),
        ([], "cannot be read"),
        ({**META, "engine_kwargs": 3}, "not the settings of an engine"),
        ({**META, "started_at": "yesterday"}, "not the settings of an engine"),
        ({**META, "engine_kwargs": {**META["engine_kwargs"], "max_num_seqs": 0}}, "max_num_seqs"),
        ({**META, "engine_kwargs": {**META["engine_kwargs"], "model": "x"}}, "unknown model 'x'"),
        ({**META, "engine_kwargs": {**META["engine_kwargs"], "kv_cache_dtype": "fp8"}}, "16 bits"),
    ],
)
def test_bad_settings(tmp_path: Path, meta: Any, message: str) -> None:
    write_run(tmp_path, meta=meta)
    with pytest.raises(UserError, match=message):
        find_recorded(tmp_path)


def test_bad_curves_and_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder in it has a meta\.json"):
        find_recorded(tmp_path)
    run, _ = write_run(tmp_path)
    (run / "timeseries.csv").write_text("t,running,waiting\n1.0,x,0\n")
    with pytest.raises(DataError, match=r"timeseries\.csv:2: cannot be read"):
        find_recorded(tmp_path)
    (run / "timeseries.csv").unlink()
    (found,) = find_recorded(tmp_path)
    assert found.curve_s.size == 0


def test_what_is_shipped() -> None:
    sums = dict(
        reversed(line.split()) for line in (SHIPPED / "SHA256SUMS").read_text().splitlines()
    )
    files = {
        f"./{path.relative_to(SHIPPED).as_posix()}"
        for path in SHIPPED.rglob("*")
        if path.is_file() and path.name not in ("SHA256SUMS", "README.md", "build.sh")
    }
    assert files == set(sums)
    for name in files:
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == sums[name]
    assert sum((SHIPPED / name).stat().st_size for name in files) < 600_000
    runs = {run.settings.model: run for run in find_recorded(SHIPPED)}
    assert set(runs) == {"llama-3.1-8b", "qwen3-32b"}
    assert "qwen3" in runs["qwen3-32b"].workload
    for run in runs.values():
        assert len(run.trace) == 300
        assert run.trace.prefix_block_tokens == 16
    measured = runs["llama-3.1-8b"].measured()
    assert measured["bct_s"] == pytest.approx(65.9, abs=0.05)
    assert measured["output_tokens_per_s"] == pytest.approx(2969, abs=1)
    assert runs["qwen3-32b"].measured()["bct_s"] == pytest.approx(159.7, abs=0.05)
