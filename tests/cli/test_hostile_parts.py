"""`batchgen policy check` of parts that misbehave: found out by one printable line, never exit code
4, and no part can hold it up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchgen.cli import main

HEAD = """
import os, sys, time
from batchgen.policy.base import OrderPart
from batchgen.errors import UserError

ODD = "a\\ud800b\\n\\x1b[31mred"

class Mute(BaseException):
    def __str__(self): raise ValueError

class NoRepr:
    def __repr__(self): raise SystemExit(0)
"""
KEY = """
class Mine(OrderPart):
    keyed = True
    def key(self, table, row):
        {}
"""
RAISES = {
    "raise ValueError(ODD)": r"exception: key raised ValueError: a\ud800b \x1b[31mred (",
    "raise Mute": "exception: key raised Mute: (Mute without a text) (",
    "sys.exit()": "exception: key raised SystemExit (",
    "return ODD": r"answer: key answered: 'a\ud800b\n\x1b[31mred' is a str, not an integer",
    "return NoRepr()": "(NoRepr that cannot be printed) is a NoRepr, not an integer",
    "raise UserError(ODD)": r"declaration: a\ud800b \x1b[31mred",
    "while True: pass": "hangs: in coalesced mode key had not returned after 1 s",
    "time.sleep(10**6)": "hangs: in coalesced mode key had not returned after 1 s",
}


@pytest.fixture(autouse=True)
def _forgets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of one name, one per test; folders that the command adds to the search path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("hostile_part", None)


def check(path: Path, *more: str) -> int:
    return main(["policy", "check", str(path), "--cases", "2", "--timeout-s", "1", *more])


# Where time is up inside a callback of the interpreter it is lost, and comes again a second later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("statement", RAISES)
def test_methods(statement: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hostile_part.py"
    path.write_text(HEAD + KEY.format(statement))
    assert check(path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("order.Mine: FAILED ")
    assert RAISES[statement] in lines[0].replace(" (case 1, seed 0)", "")
    assert all(line.isprintable() for line in lines)
    assert check(path, "--json") == 1
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert part["finding"]["slot"] == "order"


CLASSES = {
    "class M(type):\n    @property\n    def __module__(cls): raise ValueError(ODD)\n"
    "class Mine(OrderPart, metaclass=M): pass": r"ValueError: a\ud800b \x1b[31mred",
    "class M(type):\n    def __getattribute__(cls, name): raise Mute\n"
    "class Mine(OrderPart, metaclass=M): pass": "Mute: (Mute without a text)",
    "class Mine(OrderPart):\n    slot = NoRepr()": "",
    "class Mine(OrderPart):\n    changes = NoRepr()": "(NoRepr that cannot be printed)",
    "class Mine(OrderPart):\n    needs = {1, 'x'}": "TypeError",
    "class Mine(OrderPart):\n    def __init__(self, *_): sys.exit()": "making it raised SystemExit",
    "class Mine(OrderPart):\n    held = NoRepr()": "",
    "class Odd:\n    @property\n    def __class__(self): raise Mute\nx = Odd()\n"
    "class Mine(OrderPart): pass": "Mute: (Mute without a text)",
    "class Mine(OrderPart):\n    def __init__(self, *_):\n        while True: pass": (
        "making it had not returned"
    ),
    "raise Mute": "cannot be imported: Mute: (Mute without a text)",
    "sys.exit()": "cannot be imported: SystemExit",
    "raise ModuleNotFoundError(ODD, name=NoRepr())": r"cannot be imported: a\ud800b \x1b[31mred",
}


@pytest.mark.parametrize("number", range(len(CLASSES)))
def test_classes_and_modules(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = list(CLASSES.items())[number]
    path = tmp_path / "hostile_part.py"
    path.write_text(HEAD + text)
    code = check(path)
    out, err = capsys.readouterr()
    assert code in ((0, 1, 2) if not message else (1, 2))
    assert message in (err if code == 2 else out)
    assert (out + err).replace("\n", "").isprintable()
    assert (out + err).count("\n") <= 4


def test_what_a_part_prints_is_not_in_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the other processes neither; and a module may go elsewhere."""
    monkeypatch.chdir(tmp_path)
    text = "print('hello')\nos.chdir('/')\n" + KEY.format("print(row); return row")
    Path("hostile_talk.py").write_text(HEAD + text)
    assert check(Path("hostile_talk.py"), "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["parts"][0]["ok"]
    assert "hello\n" in err
    assert os.getcwd() == str(tmp_path)


def test_a_sys_exit_that_reaches_the_top_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(*_: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("batchgen.cli.policy._presets", leave)
    assert main(["policy", "list"]) == 2
    assert capsys.readouterr().err == (
        "error: code of a part or a body left by SystemExit: 0; take that out of it\n"
    )
