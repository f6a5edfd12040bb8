"""Bodies that misbehave, by the commands: error rows and exit code 1, or a line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from core_hostile import BREAK

from batchgen.cli import main

STAGE = {"prompt_tokens": 2, "output_tokens": 2}
ROW = {"prompt_tokens": 20, "output_tokens": 9, "stages": [STAGE]}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text((json.dumps(ROW) + "\n") * 7)
    words = "sim --trace t.jsonl --model llama-3.1-8b --gpu h100 --gpus 1 --progress off --json"
    return [*words.split(), "--body"]


@pytest.mark.parametrize("name", BREAK)
def test_rows_fail_by_a_line(
    name: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", "d", "--log", "full", "--policy", "vllm"]
    assert main([*command, f"core_hostile:{name}", *out]) == 1
    said = capsys.readouterr()
    (summary,) = json.loads(said.out)["runs"]
    assert summary["failed_rows"] == 3
    assert f"row 0 failed, body: {BREAK[name]}" in said.err
    assert said.err.replace("\n", "").isprintable()
    assert main(["validate", "replay", "d/vllm", "--no-fresh"]) == 0


def test_what_a_body_prints_is_not_in_the_json(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    here = os.getcwd()
    assert main([*command, "core_hostile:talks", "--out", "d"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["runs"]) == 1
    assert "row 6 begins\nand says so\n" in said.err
    assert os.getcwd() == here
    assert Path("d").is_dir()


def test_waits_of_a_trace_that_no_clock_can_hold(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [{**STAGE, "wait_s": 1_000_000}] * 12
    Path("t.jsonl").write_text(json.dumps({**ROW, "stages": stages}) + "\n" + json.dumps(ROW))
    assert main(command[:-1]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["runs"][0]["failed_rows"] == 1
    assert "a wait ends by 8.64e+06 s (100 days)" in said.err


MODULES: dict[str, tuple[str, str]] = {
    "leaves": ("import sys\nsys.exit()", "hostile_leaves cannot be imported (SystemExit)"),
    "mute": (
        "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
        "hostile_mute cannot be imported (Mute: (Mute without a text))",
    ),
    "odd": (r"raise ValueError('\ud800\x1b\nx')", r"(ValueError: \ud800\x1b x)"),
    "ruins": ("class Ruin(BaseException): pass\nraise Ruin", "(Ruin)"),
    "asks": (
        "def __getattr__(name): raise RuntimeError('no')",
        "f cannot be looked up in hostile_asks (RuntimeError: no)",
    ),
    "asks_mute": ("def __getattr__(name): raise SystemExit(0)", "(SystemExit: 0)"),
    "stands_in": (
        "import sys\nclass Odd:\n    def __getattribute__(self, name): raise KeyError(1)\n"
        "sys.modules[__name__] = Odd()",
        "(KeyError: 1)",
    ),
    "moves": ("import os\nos.chdir('/')\nf = 1", "f is no generator function in "),
    "moves_and_fails": ("import os\nos.chdir('/')\nno", "(NameError: name 'no' is not defined)"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_misbehave_are_one_line(
    name: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = MODULES[name]
    Path(f"hostile_{name}.py").write_text(text)
    here = os.getcwd()
    assert main([*command, f"hostile_{name}:f"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.strip().isprintable()
    assert message in error
    assert os.getcwd() == here
    sys.modules.pop(f"hostile_{name}", None)


@pytest.mark.parametrize("name", ["builtins:print", "sys:exit", "time:sleep"])
def test_modules_without_a_file(
    name: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    module, _, function = name.partition(":")
    assert f"{function} is no generator function in {module}" in error


def test_a_module_that_moves_works(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("hostile_mover.py").write_text(
        "import os\nos.chdir('/')\nprint('moved')\nfrom batchgen.coroutine import default_body as f"
    )
    assert main([*command, "hostile_mover:f"]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)["runs"]) == 1
    assert "moved" in said.err
