"""`batchgen exec --body`: bodies that go on, end early and break."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exec_files import run, write

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
