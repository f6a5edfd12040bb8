"""`batchgen exec` and `model init`: rows in, answers out, in order; bad rows; run files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from exec_files import read, run, write
from typer.main import get_command

from batchgen.cli import main
from batchgen.exec import worker as workers
from batchgen.exec.prepare import prepare
from batchgen.report import rundir

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


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_short_memory_is_no_bug(
    error: Exception,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(workers, "load_model", short)
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 2}\n')
    assert main(["exec", "--model", str(model), "-i", str(path), "-o", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.startswith("error: memory is short; ")


def test_model_init(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    assert main(["model", "init", str(folder), "--arch", "qwen3-moe", "--seed", "4"]) == 0
    assert f"wrote {folder}: a random tiny qwen3-moe checkpoint, seed 4" in capsys.readouterr().err
    assert main(["model", "show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_experts"] == 8
    before = (folder / "model.safetensors").read_bytes()
    assert main(["model", "init", str(folder)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["model", "init", str(folder), "--force", "--size", "huge"]) == 2
    assert "unknown size 'huge'; choose one of tiny, small" in capsys.readouterr().err
    assert main(["model", "init", str(tmp_path / "no"), "--arch", "gpt"]) == 2
    assert "unknown arch 'gpt'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (folder / "model.safetensors").read_bytes() == before
    assert main(["model", "init", str(folder), "--force"]) == 0
    assert (folder / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert main(["model", "init", str(other), "--force"]) == 2
    assert "is not a checkpoint (no config.json)" in capsys.readouterr().err
    assert main(["model", "init", str(other / "thesis.tex"), "--force"]) == 2
    assert (other / "thesis.tex").read_text() == "years of work"


def test_the_threads_are_calm_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    from batchgen.cli.torch_threads import calm_threads

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    calm_threads()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    calm_threads()
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 100_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


BODIES = """
from batchgen.coroutine import DECODE, Extend, Outcome

def twice(sequence):
    outcome = yield DECODE
    while outcome is not Outcome.FINISHED or not sequence.stage:
        if outcome is Outcome.FINISHED and sequence.request.get("breaks"):
            raise ValueError("no\\nmore")
        if outcome is Outcome.FINISHED:
            ids = sequence.request.get("ids", "and then?")
            outcome = yield Extend(ids, 4)
        else:
            outcome = yield DECODE

def shortest(sequence):
    outcome = yield DECODE
    while outcome is not Outcome.PROMPT_DONE:
        outcome = yield DECODE

def plain(sequence):
    return None
"""


def test_bodies_extend_end_early_and_break(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_bodies.py").write_text(BODIES)
    (tmp_path / "cli_broken.py").write_text("import nothing_of_this_name\n")
    short = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}
    rows = write(
        tmp_path / "in.jsonl",
        [short, {**short, "breaks": 1}, {**short, "ids": [1, 999_999]}, {**short, "ids": []}],
    )
    assert run(model, rows, tmp_path / "o", "--body", "cli_bodies:twice", "--out", "d") == 1
    good, *bad = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    body = good["response"]["body"]
    stages = body["batchgen"]["stages"]
    assert [stage["completion_tokens"] for stage in stages] == [3, 4]
    assert stages[1]["follow_up"] == "and then?"
    assert body["choices"][0]["text"] == stages[1]["text"]
    counts = [sum(stage[name] for stage in stages) for name in body["usage"] if name in stages[0]]
    assert [body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]] == counts
    assert [line["error"]["code"] for line in bad] == ["body"] * 3
    messages = [line["error"]["message"] for line in bad]
    assert messages[0] == "its body raised ValueError: no more"
    assert "extends by 999999, which is no id" in messages[1]
    assert "both need at least 1 token" in messages[2]
    assert run(model, rows, tmp_path / "p", "--body", "cli_bodies:shortest") == 0
    for line in (tmp_path / "p").read_text().splitlines():
        value = json.loads(line)["response"]["body"]
        assert value["choices"][0]["finish_reason"] in ("stop", "length")
        assert 1 <= value["usage"]["completion_tokens"] <= 3
    capsys.readouterr()
    for name, message in {
        "cli_bodies": "--body is 'cli_bodies'; give module:function",
        "cli_bodies:gone": "gone is missing in",
        "cli_bodies:plain": "plain is no generator function",
        "cli_broken:f": "cannot be imported (ModuleNotFoundError: No module named 'nothing_of",
    }.items():
        assert run(model, rows, tmp_path / "q", "--body", name) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


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
