"""What `batchgen exec` writes beside the answers: when it cannot, and where it must not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from exec_files import read, run, write

from batchgen.cli import main
from batchgen.report import rundir


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EIO])
def test_a_run_directory_that_cannot_be_written_costs_no_answer(
    code: int,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(rundir, "write_json", refuse)
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 2}\n')
    arguments = ["exec", "--model", str(model), "-i", str(path), "-o", str(tmp_path / "o")]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--progress", "off"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith(f"wrote {tmp_path / 'o'}: 1 rows answered")
    assert said[-1] == f"error: cannot write {tmp_path / 'run'}: {os.strerror(code)}; check it"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.jsonl", "o"]


def test_standard_output_that_is_full_loses_no_answer(
    model: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    rows = write(tmp_path / "in.jsonl", [{"prompt": f"row {n}", "max_tokens": 4} for n in range(3)])
    whole = tmp_path / "whole.jsonl"
    assert run(model, rows, whole, "--exact", "--progress", "off") == 0
    manifest = tmp_path / "manifest.json"
    more = ("--exact", "--job-dir", str(tmp_path / "job"), "--manifest", str(manifest))
    capfdbinary.readouterr()

    def refuses(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchgen.cli.spooling.shutil.copyfileobj", refuses)
        assert run(model, rows, Path("-"), *more) == 3
    assert b"cannot write standard output: No space left" in capfdbinary.readouterr().err
    assert run(model, rows, Path("-"), *more, "--resume", "always") == 0
    out, err = capfdbinary.readouterr()
    created = [line["response"]["body"]["created"] for line in map(json.loads, out.splitlines())]
    texts = [line["response"]["body"]["choices"] for line in map(json.loads, out.splitlines())]
    assert texts == [line["response"]["body"]["choices"] for line in read(whole)]
    assert len(set(created)) == 1
    assert b"3 of them earlier" in err
    assert json.loads(manifest.read_text())["attempts"] == 2
    assert not (tmp_path / "job").exists()


def test_a_manifest_that_cannot_be_written_can_be_later(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}])
    output, manifest = tmp_path / "out.jsonl", tmp_path / "manifest.json"

    def refuses(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("batchgen.exec.run.write_json", refuses)
        assert run(model, rows, output, "--manifest", str(manifest)) == 3
    assert "go on with --resume always" in capsys.readouterr().err
    before = output.read_bytes()
    assert run(model, rows, output, "--manifest", str(manifest), "--resume", "always") == 0
    assert output.read_bytes() == before
    told = json.loads(manifest.read_text())
    assert told["output_sha256"] == hashlib.sha256(before).hexdigest()


@pytest.mark.parametrize("option", ["--manifest", "--error-file"])
def test_no_result_replaces_what_the_job_is_made_of(
    option: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--force is for results of an earlier run; who goes on with nothing has no results yet."""
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}, {"prompt": ""}])
    output, link, thesis = (tmp_path / name for name in ("out.jsonl", "link.jsonl", "thesis"))
    os.link(rows, link)
    thesis.write_text("years of work")
    kept = {path: path.read_bytes() for path in (rows, link, thesis, model / "config.json")}
    for extra, why in (
        ((str(rows), "--force"), f"in.jsonl is the input; give another {option}"),
        ((str(link), "--force"), f"link.jsonl is the input; give another {option}"),
        ((str(model / "config.json"), "--force"), "lies in the folder of the model"),
        ((str(thesis), "--resume", "if-possible"), "thesis exists"),
    ):
        assert run(model, rows, output, option, *extra) == 2
        assert why in capsys.readouterr().err
        assert {path: path.read_bytes() for path in kept} == kept
        assert not output.exists()
    both = str(tmp_path / "both")
    assert run(model, rows, output, "--manifest", both, "--error-file", both) == 2
    assert "both is the --error-file too" in capsys.readouterr().err


def test_results_have_places_of_their_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before the run: the folder of the job is in the way, or will not be there."""
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}, {"prompt": ""}])
    output, folder = tmp_path / "out.jsonl", tmp_path / "out.jsonl.job"
    for option in ("--error-file", "--manifest", "--out"):
        assert run(model, rows, output, option, str(folder)) == 2
        assert "lies in the folder of the job" in capsys.readouterr().err
    assert run(model, rows, output, "--out", str(output)) == 2
    assert "out.jsonl is the output; give another --out" in capsys.readouterr().err
    assert run(model, rows, output, "--job-dir", str(output)) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


def test_what_cannot_be_copied_to_the_error_file_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, failed = tmp_path / "in.csv", tmp_path / "failed.jsonl"
    table.write_text('id,prompt\na,one\nb,"open\nc,\n')
    arguments = ["exec", "--model", str(model), "-i", str(table), "-o", str(tmp_path / "o")]
    arguments += ["--max-tokens", "2", "--threads", "1", "--error-file", str(failed)]
    assert main([*arguments, "--progress", "off"]) == 1
    assert [json.loads(line)["id"] for line in failed.read_text().splitlines()] == ["c"]
    assert f"the requests of 1 are in {failed}, 1 have none" in capsys.readouterr().err
