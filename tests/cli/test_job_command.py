"""`batchgen job`, `validate input` and `exec --dry-run` as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exec_files import read, run, write

from batchgen.cli import main
from batchgen.exec import look
from batchgen.exec.native_build import CannotBuildError
from batchgen.exec.profile import measure
from batchgen.exec.profile_grid import Grid

ROWS: list[dict[str, Any] | str] = [
    {"custom_id": "a", "prompt": "one", "max_tokens": 5, "ignore_eos": True},
    "nonsense",
    {"custom_id": "a", "prompt": "two"},
    {"custom_id": "b", "prompt": "three", "max_tokens": 7, "ignore_eos": True, "odd": 1},
]


def test_a_job_is_looked_at_when_it_is_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    assert run(model, rows, output, "--quiet") == 1
    assert capsys.readouterr() == ("", "")
    assert main(["job", "status", str(output)]) == 1
    out = capsys.readouterr().out
    for text in ("is done", "4 of 4 answered, 2 of them failed", "duplicate_custom_id: 1"):
        assert text in out
    assert main(["job", "status", str(output), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["done"], found["failed"]) == ("done", 2, 2)
    for only, want in (("all", [0, 1, 2, 3]), ("failed", [1, 2]), ("done", [0, 3])):
        assert main(["job", "results", str(output), "--only", only]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines == [read(output)[number] for number in want]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["status", "none"], "there is no output none"),
        (["results", "."], "not the folder of a job"),
        (["results", "none", "--order", "x"], "--order is 'x'"),
        (["results", "none", "--only", "x"], "--only is 'x'"),
        (["stop"], "No such command"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["job", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_file_is_checked_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "in.jsonl", [*ROWS, {"prompt": "c", "top_p": 7}])
    assert main(["validate", "input", str(rows), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["bad_rows"], found["bytes"]) == (5, 3, rows.stat().st_size)
    assert {code: one["rows"] for code, one in found["bad_by_code"].items()} == {
        "invalid_json": 1,
        "duplicate_custom_id": 1,
        "invalid_field": 1,
    }
    assert found["bad_by_code"]["invalid_field"]["first"][0]["line"] == 5
    assert found["unknown_fields"] == {"odd": 1}
    assert main(["validate", "input", str(rows), "--strict", "--limit", "4"]) == 1
    assert "field 'odd' is not supported" in capsys.readouterr().out
    good = write(tmp_path / "good.jsonl", [ROWS[0]])
    assert main(["validate", "input", str(good)]) == 0
    for bad, code in (("nonsense\n", 2), ("\n", 2)):
        (tmp_path / "bad.jsonl").write_text(bad)
        assert main(["validate", "input", str(tmp_path / "bad.jsonl")]) == code


def test_checking_a_file_loads_no_torch(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [ROWS[0]])
    script = (
        "import sys; from batchgen.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(9 if {'torch', 'simpy', 'pandas', 'pyarrow'} & set(sys.modules) else code)"
    )
    command = [sys.executable, "-P", "-c", script, "validate", "input", str(rows)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


TINY = Grid(
    tokens=(1, 16),
    rows=(1, 4),
    contexts=(16, 64),
    chunks=(8, 16),
    starts=(0, 16),
    pages=(1, 4),
    seconds=0.0,
    max_kv_tokens=1 << 10,
    prompts=6,
    outputs=12,
    seats=(2, 4),
    max_prefill_tokens=100,
    rounds=1,
)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where looks are kept, empty. The machine is measured once, in few points."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(look, "cache_folder", lambda: folder)
    documents: list[dict[str, Any]] = []

    def measured(model: Path, **options: Any) -> dict[str, Any]:
        if not documents:
            documents.append(measure(model, **(options | {"grid": TINY})))
        return documents[0]

    monkeypatch.setattr(look, "measure", measured)
    return folder


MANY = [{"prompt": "one", "max_tokens": 60}] * 100


def test_a_dry_run_predicts_and_says_by_what(
    model: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write(tmp_path / "in.jsonl", MANY)
    base = ["exec", "--model", str(model), "-i", str(rows), "--dry-run", "--threads", "1", "--json"]

    def told(*more: str) -> tuple[dict[str, Any], str]:
        assert main([*base, *more]) == 0
        out, err = capsys.readouterr()
        return json.loads(out)["predicted"], err

    def refuse() -> Path:
        raise CannotBuildError("others can write it")

    first, err = told()
    assert first["total_s"] > 0
    assert first["cost"] is None
    assert first["times_of"].startswith("a short look at this machine with this model (in ")
    assert "is not known" in first["error"]
    assert "measuring this machine" in err
    (kept,) = cache.glob("look-*.json")
    again, err = told("--price-per-hour", "3.6e6")
    assert (again["total_s"], "ago, kept" in again["times_of"]) == (first["total_s"], True)
    assert again["cost"] == pytest.approx(1000 * again["total_s"], rel=0.1)
    assert "measuring" not in err
    assert "ago, kept" in told("--limit", "1")[0]["times_of"]
    assert "measuring this machine" in told("--set", "plan.page_tokens=16")[1]  # another shape
    os.utime(kept, (1, 1))  # of long ago
    assert "measuring this machine" in told()[1]
    kept.write_text("{}")
    assert "measuring this machine" in told()[1]
    monkeypatch.setattr(look, "cache_folder", lambda: cache / "none")
    assert "cannot be kept" in told()[1]
    monkeypatch.setattr(look, "cache_folder", refuse)  # others could write there
    assert "measuring this machine" in told()[1]


def test_a_dry_run_of_what_cannot_be_looked_at(
    model: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write(tmp_path / "in.jsonl", MANY)
    base = ["exec", "--model", str(model), "-i", str(rows), "--dry-run", "--threads", "1"]
    assert main([*base, "--gpu", "h200"]) == 0
    assert "the published numbers of h200 (roofline)" in capsys.readouterr().out
    assert main([*base, "--limit", "9"]) == 0
    out, err = capsys.readouterr()
    assert "the simulator says" not in out
    assert "note: no prediction: so small a job is done before this machine is measured" in err
    monkeypatch.setattr(look, "MOST_WEIGHT_BYTES", 0)
    assert main(base) == 0
    assert "of a product and a copy on this machine (roofline)" in capsys.readouterr().out
    assert main([*base, "--body", "json:dumps"]) == 0
    out, err = capsys.readouterr()
    assert "the simulator says" not in out
    assert "note: no prediction: nobody knows what a body will ask for" in err
    assert not list(cache.glob("look-*"))


def test_a_dry_run_says_what_would_be_and_leaves_nothing(
    model: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "in.jsonl", ROWS)
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps(measure(model, grid=TINY, page_tokens=16, threads=1)))
    base = ["exec", "--model", str(model), "--threads", "1", "-i", str(rows)]
    before = sorted(tmp_path.rglob("*"))
    assert main([*base, "--dry-run"]) == 1
    out, _ = capsys.readouterr()
    for text in ("4 rows, 2 can run", "line 2: not valid JSON", "first prompt:\none\n", "plan:"):
        assert text in out
    extra = ["--profile", str(profile), "--price-per-hour", "3600", "--set", "plan.page_tokens=16"]
    assert main([*base, "--dry-run", "--json", *extra]) == 1
    found = json.loads(capsys.readouterr().out)
    told = found["predicted"]
    assert told["total_s"] > 0
    assert told["cost"] == pytest.approx(told["total_s"], abs=0.01)
    assert told["guess"] == "every row produces its max_tokens"
    assert found["prompt_histogram"] == [
        {"least": 2, "most": 3, "rows": 1},
        {"least": 4, "most": 7, "rows": 1},
    ]
    assert main([*base, "--dry-run", "--json", *extra, "--expected-tokens", "1"]) == 1
    shorter = json.loads(capsys.readouterr().out)["predicted"]
    assert shorter["total_s"] < told["total_s"]
    assert sorted(tmp_path.rglob("*")) == before

    output = tmp_path / "out.jsonl"
    assert main([*base, "-o", str(output), *extra[:2], *extra[4:], "--json-events"]) == 1
    events = [
        json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")
    ]
    ended = [one for one in events if one["event"] == "progress"][-1]
    assert ended["expected"]["total_s"] == pytest.approx(told["total_s"], rel=1e-3)
    assert ended["expected"]["slower"] > 0
    assert events[-1]["event"] == "end"
    assert events[-1]["failed_by_code"] == {"duplicate_custom_id": 1, "invalid_json": 1}

    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    assert main([*base[:5], "-i", str(tmp_path / "bad.jsonl"), "--dry-run"]) == 2
    assert "no row can run" in capsys.readouterr().out
    (tmp_path / "good.jsonl").write_text('{"prompt": "a"}\n')
    assert main([*base[:5], "-i", str(tmp_path / "good.jsonl"), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--output is missing"),
        (["-o", "x", "--gpu", "h100"], "--gpu only predicts; add --dry-run"),
        (["--dry-run", "--gpu", "h1000"], "unknown GPU 'h1000'"),
        (["--dry-run", "--gpu", "h100", "--body", "a:b"], "nobody knows what a body will ask"),
        (["-o", "x", "--row-timeout", "0"], "--row-timeout is 0"),
        (["-o", "x", "--row-timeout", "nan"], "--row-timeout is nan"),
        (["-o", "x", "--max-errors", "many"], "--max-errors is 'many'"),
        (["-o", "x", "--on-error", "x"], "--on-error is 'x'"),
        (["-o", "x", "--error-file", "x"], "x is the output"),
        (["-o", "x", "--error-file", "no/x"], "folder no does not exist"),
        (["-o", "x", "--output-format", "xml"], "--output-format is 'xml'"),
        (["-o", "x", "--price-per-hour", "inf"], "--price-per-hour is inf"),
        (["-o", "x", "--expected-tokens", "0"], "--expected-tokens is 0"),
        (["-o", "x", "--profile", "none.json"], "none.json"),
        (["-o", "x", "--shard", "5/4"], "--shard is '5/4'"),
        (["-o", "x", "--shard", "0/4"], "--shard is '0/4'"),
        (["-o", "x", "--shard", "4"], "--shard is '4'"),
        (["-o", "x", "--quiet", "--json-events"], "--quiet shows no progress"),
    ],
)
def test_options_that_mean_nothing_are_one_line(
    args: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", ROWS)
    assert main(["exec", "--model", str(model), "-i", "in.jsonl", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


def test_interrupted_before_a_row_runs_it_says_what_is_kept(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write(tmp_path / "in.jsonl", ROWS)
    argv = ["exec", "--model", str(model), "-i", str(rows), "-o", str(tmp_path / "out.jsonl")]
    before = sorted(tmp_path.rglob("*"))

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("batchgen.exec.attempt.prepare", interrupted)
        assert main(argv) == 3
        err = capsys.readouterr().err
        assert (
            err == "no row has run and nothing is kept: the same command begins anew\ninterrupted\n"
        )
        assert sorted(tmp_path.rglob("*")) == before
    assert main([*argv, "--max-errors", "0"]) == 3
    folder = tmp_path / "out.jsonl.job"
    assert folder.is_dir()
    capsys.readouterr()
    monkeypatch.setattr("batchgen.exec.attempt.prepare", interrupted)
    assert main([*argv, "--resume", "always"]) == 3
    assert capsys.readouterr().err.startswith(f"what is answered is in {folder}: go on by the same")
    assert folder.is_dir()
