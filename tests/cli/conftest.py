"""A stand-in for the simulator, so that the command line is tested without one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchgen.cli import main
from batchgen.report.record import RunRecord
from batchgen.simjob import Progress, SimJob

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint, for tests of `batchgen exec`."""
    folder = tmp_path_factory.mktemp("cli_exec") / "tiny"
    assert main(["model", "init", str(folder)]) == 0
    return folder


@pytest.fixture
def toy_simulator(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Patches the simulator by the toy cluster; `.jobs` lists what it was asked to do. Its one
    layout needs no search: `.searched` lists the policies for which there would be one."""
    path = Path(__file__).parents[1] / "report" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("cli_synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = SimpleNamespace(jobs=[], searched=[], fail=None, failed_rows=0)

    def simulate(job: SimJob, *, progress: Progress | None = None, trace: Any = None) -> RunRecord:
        state.jobs.append(job)
        if state.fail is not None and job.policy == "vllm":
            raise state.fail
        if progress is not None:
            progress(0, 0, 40)
            progress(10**12, 40, 40)
        record: Any = module.toy_record(
            policy=job.policy, num_rows=200, num_engines=4, refill=job.policy != "static"
        )
        record.rows["status"][: state.failed_rows] = 1
        assert isinstance(record, RunRecord)
        return record

    def search(
        job: SimJob,
        simulate: Any,
        trace: Any,
        *,
        progress: Progress | None = None,
        workers: int = 1,
    ) -> RunRecord:
        state.searched.append(job.policy)
        record: RunRecord = simulate(job, progress=progress, trace=trace)
        record.config["layout_reason"] = "tp1: there is no other"
        record.config["job"] = {"layout": record.layout, "overrides": []}
        return record

    monkeypatch.setattr("batchgen.cli.sim.simulator", lambda: simulate)
    monkeypatch.setattr("batchgen.layout_search.search", search)
    monkeypatch.setattr("batchgen.trace.schema.load", lambda path, **_: path)
    return state


@pytest.fixture
def trace_file(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("{}\n")
    return str(path)
