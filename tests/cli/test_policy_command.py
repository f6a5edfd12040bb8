"""`batchgen policy`: what it prints, its exit codes, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.cli import main

PARTS = Path(__file__).parents[1] / "check" / "parts"
LIARS, HONEST = PARTS / "liars.py", PARTS / "honest.py"


def test_list_names_presets_and_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"vllm", "batchgen", "order.longest", "admission.fits-now"} <= set(names)
    assert main(["policy", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    (longest,) = [part for part in document["parts"] if part["name"] == "order.longest"]
    assert longest["options"] == {"prompt_weight": 0.0}
    assert longest["changes"] == "never"


def test_an_honest_part_passes(capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{HONEST}:ClassesOfPrompts"
    assert main(["policy", "check", target, "--cases", "3", "--seed", "4"]) == 0
    out, err = capsys.readouterr()
    assert out == "order.ClassesOfPrompts: ok (3 cases, seed 4)\n"
    assert "order.ClassesOfPrompts: 3 cases, seed 4" in err


def test_a_liar_is_named_with_its_case_and_the_case_runs_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = f"{LIARS}:EvenPages"
    assert main(["policy", "check", target, "--cases", "60", "--json"]) == 1
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert part["finding"]["property"] == "agreement"
    assert "with 'pass' the case agrees" in part["finding"]["likely"]
    case = json.dumps(part["finding"]["case"])
    assert main(["policy", "check", target, "--case", case]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("admission.EvenPages: FAILED agreement: reference mode")
    assert lines[1] == "  likely: it declares changes = 'never'; with 'pass' the case agrees: " + (
        "declare that"
    )
    assert lines[2] == f"  smallest case, for --case: {case}"
    assert main(["policy", "check", f"{HONEST}:EvenPagesEachPass", "--case", case]) == 0


def test_a_module_a_part_and_a_preset_are_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(PARTS))
    check = ["policy", "check", "--cases", "1", "--json"]
    assert main([*check, "honest"]) == 0
    assert len(json.loads(capsys.readouterr().out)["parts"]) == 8
    assert main([*check, "orca"]) == 0
    assert main([*check, "batchgen.policy.memory:RecomputeNewest"]) == 0


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["nowhere"], "there is no 'nowhere'; give a preset, slot.name of a part, a module, a .py"),
        (["nowhere.py"], "nowhere.py does not exist; give the path of a .py file"),
        (["order.longes"], "there is no 'order.longes'"),
        (["json"], "json defines no policy part; derive a class from OrderPart"),
        (["batchgen.policy.memory:None"], "batchgen.policy.memory has no 'None'; its parts: "),
        (["vllm", "--set", "order.weight=3"], "Arrival has no such option"),
        (["order.longest", "--set", "order.prompt_weight=x"], "not a valid float"),
        (["order.longest", "--set", "memory.x=1"], "order.longest has no memory part"),
        (["vllm", "--case", "{"], "--case is no case"),
        (["vllm", "--case", '{"preset": "vllm", "rows": []}'], "--case has no rows"),
        (
            ["vllm", "--case", '{"preset": "vlm", "rows": [{"prompt":1,"budget":1,"output":1}]}'],
            "unknown policy 'vlm'; did you mean vllm",
        ),
        (["vllm", "--cases", "0"], "Invalid value for '--cases'"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "check", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert line in err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import nothing_of_that_name", "cannot be imported: No module named 'nothing_of_that"),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    ],
)
def test_files_that_do_not_load_are_one_line(
    text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "part_of_mine.py"
    path.write_text(text + "\n")
    assert main(["policy", "check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert line in err
