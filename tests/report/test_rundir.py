"""Run directories: written whole or not at all, read back the same, nothing overwritten."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from batchgen.errors import DataError, UserError
from batchgen.report.metrics import summary
from batchgen.report.rundir import RUN_FIELDS, load_run, write_run


def test_round_trip_keeps_everything(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.toy_record(num_rows=80, num_engines=8, faults=True)
    record.decisions = iter([gzip.compress(b'{"a":1}\n'), gzip.compress(b'{"b":2}\n')])
    result = write_run(record, tmp_path / "runs" / "one", plots=False)
    back = load_run(tmp_path / "runs" / "one")
    for name in RUN_FIELDS:
        assert getattr(back, name) == getattr(record, name), name
    assert back.row_reasons == record.row_reasons
    for table in ("rows", "steps"):
        old, new = getattr(record, table), getattr(back, table)
        assert list(old) == list(new)
        for name in old:
            assert new[name].dtype == old[name].dtype
            np.testing.assert_array_equal(new[name], old[name])
    assert summary(back) == result
    files = sorted(p.name for p in (tmp_path / "runs" / "one").iterdir())
    assert files == [
        "decisions.jsonl.gz",
        "plots",
        "rows.parquet",
        "run.json",
        "steps.parquet",
        "summary.json",
    ]
    written = json.loads((tmp_path / "runs" / "one" / "summary.json").read_text())
    assert written == {"schema": 1} | result
    with gzip.open(tmp_path / "runs" / "one" / "decisions.jsonl.gz", "rt") as lines:
        assert lines.read() == '{"a":1}\n{"b":2}\n'
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["one"]  # no temporary left


def test_the_same_run_gives_the_same_bytes(synthetic: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        record = synthetic.toy_record(num_rows=30, num_engines=2)
        record.decisions = [b"x"]
        write_run(record, tmp_path / name)
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 9
    for path in files:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes(), path.name


def test_nothing_is_overwritten_without_force(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.toy_record(num_rows=5, num_engines=1)
    target = tmp_path / "run"
    target.mkdir()
    write_run(record, target, plots=False)  # an empty folder is free
    with pytest.raises(UserError, match=r"exists and is not empty; .*--force"):
        write_run(record, target, plots=False)
    record.policy = "other"
    write_run(record, target, plots=False, force=True)
    assert load_run(target).policy == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_force_never_deletes_a_folder_that_is_no_run(synthetic: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a run directory"):
        write_run(synthetic.toy_record(num_rows=3), tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failure_while_writing_leaves_the_old_run(synthetic: ModuleType, tmp_path: Path) -> None:
    write_run(synthetic.toy_record(num_rows=5, policy="old"), tmp_path / "run", plots=False)
    broken = synthetic.toy_record(num_rows=5, policy="new")
    broken.config = {"callable": print}
    with pytest.raises(TypeError, match="is not JSON"):
        write_run(broken, tmp_path / "run", plots=False, force=True)
    assert load_run(tmp_path / "run").policy == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_bad_run_directories_name_file_and_field(synthetic: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        load_run(tmp_path)
    path = tmp_path / "run"
    write_run(synthetic.toy_record(num_rows=5), path, plots=False)
    run = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(run | {"schema": 99}))
    with pytest.raises(DataError, match=r"run\.json: field 'schema': schema 99"):
        load_run(path)
    del run["marks"]
    (path / "run.json").write_text(json.dumps(run))
    with pytest.raises(DataError, match=r"field 'marks': missing"):
        load_run(path)
    (path / "run.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        load_run(path)
    (path / "run.json").write_text(json.dumps(run | {"marks": []}))
    (path / "steps.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"steps\.parquet: cannot be read"):
        load_run(path)
