"""`batchgen exec` among odd models, rows, folders and leftovers."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import pytest
import tokenizers
from exec_files import read, run, write

from batchgen.cli import live


def test_temperatures_near_zero_and_the_smallest_nucleus(model: Path, tmp_path: Path) -> None:
    row = {"prompt": "hello", "max_tokens": 8, "ignore_eos": True}
    odd = [{"temperature": t} for t in (5e-324, 1e-308, 1e-300, 1e-30)]
    odd += [{"temperature": 1.0, "top_p": p} for p in (5e-324, 1e-308, 1e-30)]
    rows = write(tmp_path / "in.jsonl", [row, *({**row, **more} for more in odd)])
    assert run(model, rows, tmp_path / "out.jsonl") == 0
    texts = {a["response"]["body"]["choices"][0]["text"] for a in read(tmp_path / "out.jsonl")}
    assert len(texts) == 1


def test_a_tokenizer_that_knows_more_than_the_model(model: Path, tmp_path: Path) -> None:
    larger = tmp_path / "model"
    shutil.copytree(model, larger)
    tokenizer = json.loads((larger / "tokenizer.json").read_text())
    vocabulary = json.loads((larger / "config.json").read_text())["vocab_size"]
    extra = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append(
        {"id": vocabulary + 5, "content": "<beyond>", "special": True, **extra}
    )
    tokenizer["model"]["vocab"]["<beyond>"] = vocabulary + 5
    (larger / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = [{"role": "user", "content": "a <beyond> b"}]
    rows = write(
        tmp_path / "in.jsonl",
        [
            {"prompt": "a <beyond> b", "max_tokens": 2},
            {"prompt": "a b", "max_tokens": 2},
            {"messages": message, "max_tokens": 2},
        ],
    )
    assert run(larger, rows, tmp_path / "out.jsonl") == 1
    codes = [a["error"] and a["error"]["code"] for a in read(tmp_path / "out.jsonl")]
    assert codes == ["token_out_of_vocabulary", None, "token_out_of_vocabulary"]


def test_a_text_that_the_tokenizer_cannot_encode_costs_one_row(model: Path, tmp_path: Path) -> None:
    """Some kinds of tokenizer raise where a text holds what they do not know."""
    poor = tmp_path / "model"
    shutil.copytree(model, poor)
    kind = tokenizers.models.WordLevel({"a": 5, "b": 6}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(kind)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(poor / "tokenizer.json"))
    (poor / "chat_template.jinja").write_text("{{ messages[0].content }}")
    rows = write(
        tmp_path / "in.jsonl",
        [
            {"prompt": "a b", "max_tokens": 2},
            {"prompt": "a z", "max_tokens": 2},
            {"messages": [{"role": "user", "content": "b z"}], "max_tokens": 2},
            {"messages": [{"role": "user", "content": "b a"}], "max_tokens": 2},
        ],
    )
    assert run(poor, rows, tmp_path / "out.jsonl") == 1
    codes = [a["error"] and a["error"]["code"] for a in read(tmp_path / "out.jsonl")]
    assert codes == [None, "invalid_prompt", "invalid_messages", None]


def test_what_a_killed_run_left_refuses_no_other(model: Path, tmp_path: Path) -> None:
    """In a container the next run has the same process id; what was left is not its own."""
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}])
    names = [f".out.jsonl.{what}.tmp" for what in (os.getpid(), 0, 1, "0" * 12)]
    names += [f".out.jsonl.{os.getpid()}", f"out.jsonl.{os.getpid()}.tmp", ".out.jsonl.tmp"]
    for name in names:
        (tmp_path / name).write_text("left")
    assert run(model, rows, tmp_path / "out.jsonl") == 0
    assert len(read(tmp_path / "out.jsonl")) == 1
    assert all((tmp_path / name).read_text() == "left" for name in names)
    assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", *names}


def test_a_model_has_a_name_however_its_folder_is_spelt(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder whose name is no UTF-8 too, and that is told as text in the run directory."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/q\xff"))
    shutil.copytree(model, folder)
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 1 + 10**4000}])
    more = write(tmp_path / "more.jsonl", [{"prompt": "a", "max_tokens": 2}])
    monkeypatch.chdir(folder)
    assert run(Path("."), more, tmp_path / "out.jsonl", "--out", "run", "--log", "full") == 0
    (answer,) = read(tmp_path / "out.jsonl")
    assert answer["response"]["body"]["model"] == "q\\udcff"
    config = json.loads((folder / "run" / "run.json").read_text())["config"]
    assert config["model_folder"].endswith("q\\xff") or config["model_folder"] == "."
    both = write(
        tmp_path / "both.jsonl", [*rows.read_text().splitlines(), more.read_text().strip()]
    )
    assert run(Path("."), both, tmp_path / "b.jsonl") == 1
    assert len((tmp_path / "b.jsonl").read_text()) < 3000


def test_progress_counts_the_time_that_passed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = functools.partial(live.Plain, every_s=0.0)
    monkeypatch.setattr(live, "Plain", eager)
    rows = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}] * 3)
    assert run(model, rows, tmp_path / "out.jsonl") == 0
    said = capsys.readouterr().err
    assert "3/3 rows" in said
    assert "gone, 0 s left (tail)" in said
    assert "simulated" not in said


def test_a_template_that_wants_too_much_costs_one_row(model: Path, tmp_path: Path) -> None:
    greedy = tmp_path / "model"
    shutil.copytree(model, greedy)
    (greedy / "chat_template.jinja").write_text(
        "{% set what = messages[0].content %}"
        "{% if what == 'much' %}{{ what * 10**10 }}{% else %}{{ what }}{% endif %}"
    )
    rows = write(
        tmp_path / "in.jsonl",
        [
            {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
            for content in ("a", "much", "b", "much", "c")
        ],
    )
    assert run(greedy, rows, tmp_path / "out.jsonl") == 1
    errors = [answer["error"] for answer in read(tmp_path / "out.jsonl")]
    assert [error and error["code"] for error in errors] == [None, "invalid_messages"] * 2 + [None]
    assert errors[1]["message"] == "line 2: chat template: needs more than 1024 MiB of memory"
