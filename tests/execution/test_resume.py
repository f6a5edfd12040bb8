"""Jobs that stop anywhere and go on: the same bytes as undisturbed, rows go on in their middle."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_generation_jobs import WAYS, job_rows

from batchgen.cli import main
from batchgen.errors import Unfinished, UserError
from batchgen.exec import saving
from batchgen.exec.fingerprint import job_fingerprint
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.packed import SWITCH, packed_way
from batchgen.exec.prepare import Prepared
from batchgen.exec.run import execute
from batchgen.job.fingerprint import check_same
from batchgen.job.folder import default_folder
from batchgen.job.journal import Journal
from batchgen.report.rundir import write_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("resume") / "m", "qwen3", "tiny", seed=3)


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def job(
    model: Path, folder: Path, name: str, way: tuple[str, dict[str, str], int, int], **more: Any
) -> ExecJob:
    rows = job_rows()
    for number in range(6):  # longer ones, so that most stops find them in their middle
        rows.append({"prompt": f"row {number} " * (number + 1), "max_tokens": 40 + 7 * number})
    rows.append({"prompt": ""})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "in.jsonl").write_text(lines + "nonsense\n")
    policy, overrides, hbm_pages, host_pages = way
    sizes = {"plan.page_tokens": "8", "plan.boundary": "8"} | overrides
    return ExecJob(
        model=model,
        input=folder / "in.jsonl",
        output=folder / name,
        policy=policy,
        overrides=tuple(sizes.items()),
        hbm_pages=hbm_pages,
        host_pages=host_pages,
        threads=1,
        exact=True,
        **more,
    )


def stops_after(passes: int, error: type[BaseException] | None = None) -> Callable[[], bool]:
    """`error`: raised there, as a crash that saves nothing more."""
    left = passes

    def stopping() -> bool:
        nonlocal left
        left -= 1
        if left < 0 and error is not None:
            raise error
        return left < 0

    return stopping


@pytest.mark.parametrize("way", WAYS, ids=[f"{way[0]}-{n}" for n, way in enumerate(WAYS)])
def test_stopped_anywhere_the_bytes_are_the_same(
    way: tuple[str, dict[str, str], int, int],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = execute(job(model, tmp_path, "whole", WAYS[0]))
    assert (whole.errors, whole.attempts, whole.earlier) == (2, 1, 0)
    monkeypatch.setattr(saving, "EVERY_S", 0.0)
    monkeypatch.setattr(saving.Saving.__init__, "__kwdefaults__", {"every_s": 0.0})
    begun: list[int] = []
    fresh = Prepared.fresh_table

    def watched(prepared: Prepared) -> Any:
        begun.extend(prepared.produced or ())
        return fresh(prepared)

    monkeypatch.setattr(Prepared, "fresh_table", watched)
    rng = random.Random(len(way[1]) + way[2])
    disturbed = job(model, tmp_path, "disturbed", way, resume="if-possible", log="full")
    for attempt in range(1, 100):
        crash = None if attempt % 2 else KeyboardInterrupt
        try:
            ended = execute(disturbed, stopping=stops_after(rng.randrange(1, 30), crash))
            break
        except (Unfinished, KeyboardInterrupt):
            assert not disturbed.output.exists()
    assert ended.attempts == attempt > 3
    assert (ended.done, ended.errors, ended.rows) == (whole.done, 2, whole.rows)
    assert disturbed.output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert ended.output_sha256 == whole.output_sha256
    assert max(begun) > 20
    assert not default_folder(disturbed.output).exists()


def test_a_resumed_run_is_replayed(model: Path, tmp_path: Path) -> None:
    """Its log says what rows brought along."""
    one = job(model, tmp_path, "out", WAYS[4], log="full")
    with pytest.raises(Unfinished):
        execute(one, stopping=stops_after(25))
    with Journal(default_folder(one.output) / "journal.sqlite") as journal:
        assert any(len(ids) > 8 for ids in journal.produced().values())
    ended = execute(replace(one, resume="always"))
    assert ended.record is not None
    write_run(ended.record, tmp_path / "run", plots=False)
    assert main(["validate", "replay", str(tmp_path / "run"), "--no-fresh"]) == 0


def test_rows_in_the_order_of_their_completion(model: Path, tmp_path: Path) -> None:
    one = job(model, tmp_path, "by-input", WAYS[2])
    execute(one)
    two = replace(one, output=tmp_path / "by-completion", order="completion")
    with pytest.raises(Unfinished):
        execute(two, stopping=stops_after(40))
    execute(replace(two, resume="always"))
    first, second = (
        (tmp_path / n).read_bytes().splitlines() for n in ("by-input", "by-completion")
    )
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_disk_that_fills_at_the_last_instant(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, and no model is loaded to go on."""
    one = job(model, tmp_path, "out", WAYS[2])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("batchgen.job.final.place", full)
        with pytest.raises(Unfinished, match="all answers are kept; make room, then go on with"):
            execute(one)
    assert not one.output.exists()
    monkeypatch.setattr("batchgen.exec.attempt.prepare", None)
    ended = execute(replace(one, resume="always"))
    assert ended.record is None
    assert ended.earlier == ended.rows == len(one.output.read_text().splitlines())


def test_killed_between_the_rename_and_the_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is in place and the folder still there: going on sees that and ends."""
    one = job(model, tmp_path, "out", WAYS[2])
    with monkeypatch.context() as patch:
        patch.setattr("batchgen.job.folder._take_away", lambda path: None)
        first = execute(one)
    assert default_folder(one.output).exists()
    again = execute(replace(one, resume="always"))
    assert again.output_sha256 == first.output_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 5),
        ("max_tokens", 17),
        ("temperature", 0.5),
        ("limit", 3),
        ("exact", False),
        ("body", "exec_bodies:turns"),
    ],
)
def test_another_job_is_refused_by_name(
    field: str, value: Any, model: Path, tmp_path: Path
) -> None:
    one = job(model, tmp_path, "out", WAYS[2])
    with pytest.raises(Unfinished):
        execute(one, stopping=stops_after(9))
    name = field.replace("_", " ")
    with pytest.raises(UserError, match=f"was begun with another {name}: .*, and this is {value}"):
        execute(replace(one, resume="always", **{field: value}))
    with one.input.open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match=r"was begun with another input: .* bytes\)"):
        execute(replace(one, resume="if-possible"))


def test_another_way_of_products_is_another_job(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the same processor may compute by one of several, with other sums."""
    one = replace(job(model, tmp_path, "out", WAYS[0]), dtype="bfloat16", exact=False)
    monkeypatch.delenv(SWITCH, raising=False)
    if not packed_way():
        pytest.skip("there is one way here")
    usual = job_fingerprint(one, model)
    monkeypatch.setenv(SWITCH, "torch")
    with pytest.raises(UserError, match=r"begun with another products: .*, and this is torch"):
        check_same(usual, job_fingerprint(one, model), tmp_path)


def test_killed_while_the_folder_goes_nothing_is_computed_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(model, tmp_path, "out", WAYS[0])

    def killed(path: Path) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("batchgen.job.folder.beside", killed)
        with pytest.raises(SystemExit):
            execute(one)
    before, passes = one.output.read_bytes(), 0

    def stopping() -> bool:
        nonlocal passes
        passes += 1
        return False

    ended = execute(replace(one, resume="always"), stopping=stopping)
    assert (passes, ended.earlier, ended.record) == (0, ended.rows, None)
    assert one.output.read_bytes() == before
    assert not default_folder(one.output).exists()


def test_a_folder_that_cannot_be_renamed_is_empty_in_the_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a disk is mounted: the next job begins there, and finds none that is unfinished."""
    one = replace(job(model, tmp_path, "out", WAYS[0]), folder=tmp_path / "mounted")
    assert one.folder is not None
    one.folder.mkdir()

    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "rename", refused)
    execute(one)
    assert {path.name for path in one.folder.iterdir()} <= {"owner.json"}
    execute(replace(one, output=tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == one.output.read_bytes()
