"""A model that stays between jobs: loaded once, and the same answers as if it had not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchgen.errors import Unfinished, UserError
from batchgen.exec import kept as kept_module
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.kept import KeptModel
from batchgen.exec.run import execute


def job_of(
    folder: Path, model: Path, name: str, rows: list[dict[str, Any]], **more: Any
) -> ExecJob:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return ExecJob(
        model=model, input=path, output=folder / f"{name}.out", exact=True, threads=1, **more
    )


def test_loaded_once_with_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    model = init_model(tmp_path / "tiny")
    loads = 0
    load: Callable[..., Any] = kept_module.load_model

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal loads
        loads += 1
        return load(*args, **options)

    monkeypatch.setattr(kept_module, "load_model", counted)
    kept = KeptModel()
    rows = [{"prompt": f"{i} and so on", "max_tokens": 20 + i} for i in range(12)]
    for number, some in enumerate((rows[:3], rows, rows[5:])):
        ours = job_of(tmp_path, model, f"kept{number}", some, hbm_pages=8 + number)
        alone = job_of(tmp_path, model, f"alone{number}", some)
        execute(ours, kept=kept)
        execute(alone)
        assert ours.output.read_bytes() == alone.output.read_bytes()
    assert loads == 1
    assert kept.holds(model, "float32", True, "cpu")
    assert not kept.holds(model, "float32", False, "cpu")
    # Another checkpoint in the same folder is another model.
    config = model / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    execute(job_of(tmp_path, model, "again", rows[:1]), kept=kept)
    assert loads == 2


def test_bad_rows_alone(tmp_path: Path) -> None:
    model = init_model(tmp_path / "tiny")
    rows = [{"prompt": "x", "temperature": -1}, {"nothing": 1}]
    with pytest.raises(UserError, match="no row of"):
        execute(job_of(tmp_path, model, "refused", rows))
    ended = execute(job_of(tmp_path, model, "taken", rows, some_must_run=False))
    assert (ended.done, ended.errors, ended.record) == (0, 2, None)


def test_given_up_while_the_input_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    model = init_model(tmp_path / "tiny")
    rows: list[dict[str, Any]] = [{"temperature": -1}]
    rows += [{"prompt": f"{i}", "max_tokens": 2} for i in range(200)]
    asked = 0

    def giving_up() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    job = job_of(tmp_path, model, "rows", rows)
    with pytest.raises(Unfinished) as caught:
        execute(job, giving_up=giving_up)
    assert caught.value.code == "stopped"
    assert asked == 2
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rows.jsonl", "tiny"]
    execute(job, giving_up=giving_up)
    assert len(job.output.read_bytes().splitlines()) == 201
