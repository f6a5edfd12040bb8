"""Bodies that misbehave in the executor: error rows that can be printed, the others answered."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from batchgen.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from core_hostile import BREAK

OTHERS = {"odd_follow_up": "its body extends by a text that fails: "}
"""Bodies whose reason is another where there is text."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assert main(["model", "init", str(folder / "m"), "--arch", "llama"]) == 0
    return folder / "m"


@pytest.fixture
def command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "hello", "max_tokens": 3, "ignore_eos": True}
    Path("in.jsonl").write_text((json.dumps(row) + "\n") * 4)
    words = "-i in.jsonl -o out.jsonl --progress off --json --body"
    return ["exec", "--model", str(model), *words.split()]


@pytest.mark.parametrize("name", sorted(set(BREAK) - {"sleeps_long"}))
def test_rows_fail_by_a_line(name: str, command: list[str]) -> None:
    assert main([*command, f"core_hostile:{name}"]) == 1
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["error"] is not None for line in lines] == [True, False, False, True]
    for line in (lines[0], lines[3]):
        assert line["error"]["code"] == "body"
        assert line["error"]["message"].startswith(OTHERS.get(name, BREAK[name]))
        assert line["error"]["message"].isprintable()


def test_what_a_body_prints_is_not_in_the_json(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "core_hostile:talks", "--out", "d"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["runs"]) == 1
    assert "row 3 begins\nand says so\n" in said.err
    assert len(Path("out.jsonl").read_text().splitlines()) == 4


def test_agreement_with_a_body_that_talks_and_breaks(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "validate",
        "agreement",
        *command[1:5],
        "--cancel",
        "0",
        "--json",
        "--policies",
        "vllm",
    ]
    for name, code in (("talks", 0), ("refuses", 1), ("never_sleeps", 1)):
        assert main([*words, "--body", f"core_hostile:{name}"]) == code
        (result,) = json.loads(capsys.readouterr().out)["runs"]
        assert result["equal"]
