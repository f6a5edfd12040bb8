"""`batchgen exec`: rows in, answers out, in order; bad rows; its run directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from exec_files import read, run, write
from typer.main import get_command

from batchgen.cli import main
from batchgen.exec.prepare import prepare

EXEC_FLAGS = {
    "--model",
    "--input",
    "-i",
    "--output",
    "-o",
    "--policy",
    "--set",
    "--device",
    "--dtype",
    "--exact",
    "--max-tokens",
    "--temperature",
    "--seed",
    "--limit",
    "--body",
    "--hbm-pages",
    "--host-pages",
    "--threads",
    "--out",
    "--force",
    "--resume",
    "--job-dir",
    "--order",
    "--log",
    "--json",
    "--progress",
    "--quiet",
    "-q",
    "--json-events",
    "--input-format",
    "--prompt-column",
    "--prompt-template",
    "--chat",
    "--system",
    "--strict",
    "--served-model-name",
    "--manifest",
    "--output-format",
    "--error-file",
    "--max-errors",
    "--on-error",
    "--row-timeout",
    "--dry-run",
    "--profile",
    "--gpu",
    "--expected-tokens",
    "--price-per-hour",
    "--shard",
}


CHAT = "/v1/chat/completions"


def batch_line(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "z", **body}}


def test_the_flags_are_pinned() -> None:
    from batchgen.cli import exec as command

    parameters = get_command(command.app).params
    assert {o for p in parameters for o in p.opts if o.startswith("-")} - {"--help"} == EXEC_FLAGS


def test_every_form_of_row_is_answered_in_order(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = [{"role": "user", "content": "hello"}]
    rows = write(
        tmp_path / "in.jsonl",
        [
            batch_line("chat", CHAT, messages=message, max_tokens=12),
            {"prompt": "Once upon a time", "max_tokens": 9, "ignore_eos": True},
            batch_line("text", "/v1/completions", prompt="abc", max_tokens=40, ignore_eos=True),
            {"messages": message},
            {"prompt": [72, 105], "id": "ids", "max_tokens": 1},
            {"prompt": "warm", "temperature": 0.8, "seed": 3, "max_tokens": 5, "ignore_eos": True},
        ],
    )
    output = tmp_path / "out.jsonl"
    assert run(model, rows, output, "--max-tokens", "20") == 0
    out, err = capsys.readouterr()
    assert "batch completion time" in out
    assert f"wrote {output}: 6 rows answered, 0 error rows" in err
    answers = read(output)
    ids = ["chat", "line-2", "text", "line-4", "ids", "line-6"]
    assert [answer["custom_id"] for answer in answers] == ids
    bodies = [answer["response"]["body"] for answer in answers]
    assert [body["object"].split(".")[0] for body in bodies] == [
        "chat",
        "text_completion",
        "text_completion",
        "chat",
        "text_completion",
        "text_completion",
    ]
    for answer, body in zip(answers, bodies, strict=True):
        usage = body["usage"]
        assert answer["error"] is None
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert body["choices"][0]["finish_reason"] in ("stop", "length")
    assert [body["usage"]["completion_tokens"] for body in bodies[1:3]] == [9, 40]
    assert bodies[1]["usage"]["prompt_tokens"] == len("Once upon a time")
    assert bodies[3]["usage"]["completion_tokens"] <= 20
    assert bodies[4]["usage"] == {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    assert bodies[0]["choices"][0]["message"]["role"] == "assistant"
    assert (bodies[0]["model"], bodies[1]["model"]) == ("z", "tiny")
    assert len({body["created"] for body in bodies}) == 1


def test_the_same_job_gives_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the time of day is, with SOURCE_DATE_EPOCH; without, `created` is the time of the
    job's beginning, in all rows."""
    rows = write(
        tmp_path / "in.jsonl",
        [
            {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
            {"prompt": "warm", "temperature": 0.8, "max_tokens": 5},
            "nonsense",
        ],
    )
    outputs = []
    for number in range(4):
        monkeypatch.setattr("time.time", lambda number=number: 1e9 * (1 + number))
        if number == 2:
            monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        output = tmp_path / f"{number}.jsonl"
        assert run(model, rows, output) == 1
        outputs.append(output.read_bytes())
        when = 1_700_000_000 if number > 1 else int(1e9) * (1 + number)
        answers = [one["response"] for one in read(output) if one["response"]]
        assert [one["body"]["created"] for one in answers] == [when] * 2
    assert outputs[0] != outputs[1]
    assert outputs[2] == outputs[3]


def test_what_was_read_is_what_was_hashed(model: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}] * 3)
    data = rows.read_bytes()
    for extra, size in (((), len(data)), (("--limit", "2"), len(data) * 2 // 3)):
        folder = tmp_path / f"run-{size}"
        assert run(model, rows, tmp_path / f"{size}.jsonl", "--out", str(folder), *extra) == 0
        config = json.loads((folder / "run.json").read_text())["config"]
        assert config["input_bytes"] == size
        assert config["input_sha256"] == hashlib.sha256(data[:size]).hexdigest()


def test_answers_do_not_depend_on_policy_or_memory(model: Path, tmp_path: Path) -> None:
    rows = write(
        tmp_path / "in.jsonl",
        [{"prompt": f"row {n} " * (1 + n % 5), "max_tokens": 10 + 7 * n} for n in range(8)],
    )
    texts = []
    tight = ("--hbm-pages", "14", "--set", "plan.page_tokens=8", "--set", "plan.boundary=8")
    for number, extra in enumerate(
        [("--policy", p, *e) for p in ("static", "orca", "vllm", "batchgen") for e in ((), tight)]
    ):
        output = tmp_path / f"{number}.jsonl"
        assert run(model, rows, output, *extra) == 0
        bodies = [answer["response"]["body"] for answer in read(output)]
        texts.append([(body["choices"], body["usage"]) for body in bodies])
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize(
    "chosen", [("--policy", "longest-first"), ("--set", "predictor.part=ranker")]
)
def test_a_predictor_of_true_lengths_is_refused(
    model: Path, tmp_path: Path, chosen: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No executor knows them."""
    rows = write(tmp_path / "in.jsonl", [{"prompt": "x", "max_tokens": 3}])
    assert run(model, rows, tmp_path / "out.jsonl", *chosen) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "predictor part ranker needs lengths" in told
    assert not (tmp_path / "out.jsonl").exists()


def test_ample_memory_runs_rows_together(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(
        tmp_path / "in.jsonl",
        [{"prompt": "x" * 9, "max_tokens": 30, "ignore_eos": True} for _ in range(6)],
    )
    for policy in ("vllm", "batchgen"):
        assert run(model, rows, tmp_path / policy, "--policy", policy, "--json") == 0
        (summary,) = json.loads(capsys.readouterr().out)["runs"]
        assert summary["passes"] == 30  # one prefill and 29 decode passes, all rows in each
        assert (summary["rows"], summary["finished_rows"]) == (6, 6)
        assert summary["output_tokens"] == 180


def test_bad_rows_become_error_rows(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(
        tmp_path / "in.jsonl",
        [
            "not json",
            {"prompt": "good", "max_tokens": 3},
            batch_line("a", CHAT, messages=[]),
            {"prompt": ""},
            {"prompt": "x" * 5000},
            batch_line("b", "/v1/completions", prompt="x", max_tokens=5000),
            {"prompt": "x", "best_of": 2},
            {"prompt": "also good", "max_tokens": 3},
        ],
    )
    assert run(model, rows, tmp_path / "out.jsonl") == 1
    assert "2 rows answered, 6 error rows" in capsys.readouterr().err
    answers = read(tmp_path / "out.jsonl")
    assert [answer["error"] and answer["error"]["code"] for answer in answers] == [
        "invalid_json",
        None,
        "invalid_field",
        "empty_prompt",
        "context_length_exceeded",
        "context_length_exceeded",
        "unsupported_field",
        None,
    ]
    assert answers[4]["error"]["message"].startswith("line 5: ")
    assert answers[4]["response"] is None


def test_only_bad_rows(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "in.jsonl", ["nope", {"prompt": ""}])
    assert run(model, rows, tmp_path / "out.jsonl", "--json") == 2
    assert "can run; line 1: " in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_that_never_fits_is_an_error_row(model: Path, tmp_path: Path) -> None:
    rows = write(
        tmp_path / "in.jsonl",
        [{"prompt": "x" * 400, "max_tokens": 9}, {"prompt": "x", "max_tokens": 9}],
    )
    for policy in ("static", "orca", "vllm", "batchgen"):
        output = tmp_path / policy
        assert run(model, rows, output, "--policy", policy, "--hbm-pages", "5") == 1, policy
        long, short = read(output)
        assert long["error"]["code"] == "capacity"
        assert short["error"] is None


def test_the_run_directory_and_its_replay(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a" * n, "max_tokens": n} for n in range(1, 7)])
    folder = tmp_path / "run"
    extra = ("--out", str(folder), "--log", "full", "--limit", "4", "--policy", "vllm")
    assert run(model, rows, tmp_path / "out.jsonl", *extra) == 0
    names = {path.name for path in folder.iterdir()}
    files = {"run.json", "summary.json", "rows.parquet", "steps.parquet", "decisions.jsonl.gz"}
    assert files | {"plots", "manifest.json"} == names
    document = json.loads((folder / "run.json").read_text())
    assert document["backend"] == "exec"
    assert document["config"]["job"]["policy"] == "vllm"
    assert document["config"]["plan"]["page_tokens"] == 16
    assert len(read(tmp_path / "out.jsonl")) == 4
    capsys.readouterr()
    assert main(["validate", "replay", str(folder), "--no-fresh"]) == 0
    assert "of vllm on exec came again" in capsys.readouterr().out
    assert main(["report", str(folder), "--json"]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["runs"]
    assert {"schema": 1, **summary} == json.loads((folder / "summary.json").read_text())


def test_an_input_that_changes_while_it_is_read(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}] * 2)
    output = tmp_path / "out.jsonl"

    def grown(*args: Any, **more: Any) -> Any:
        with rows.open("a") as file:
            file.write('{"prompt": "b", "max_tokens": 2}\n')
        return prepare(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr("batchgen.exec.attempt.prepare", grown)
        assert run(model, rows, output) == 2
    assert "in.jsonl changed while it was read" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in.jsonl"]
    assert run(model, rows, output) == 0
    assert len(read(output)) == 3
