"""`batchgen validate`: its subcommands and flags; what they compute is tested in tests/validate."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from batchgen.cli import main
from batchgen.errors import UserError

FLAGS = {
    "replay": {"--fresh", "--json"},
    "agreement": {
        "--model",
        "--input",
        "-i",
        "--policies",
        "--set",
        "--max-tokens",
        "--hbm-pages",
        "--rate",
        "--cancel",
        "--gpu",
        "--seed",
        "--limit",
        "--body",
        "--json",
    },
}


def test_the_flags_are_pinned() -> None:
    from batchgen.cli import validate

    commands = get_command(validate.app).commands
    found = {
        name: {o for p in command.params for o in p.opts if o.startswith("-")} - {"--help"}
        for name, command in commands.items()
    }
    assert {name: found[name] for name in FLAGS} == FLAGS


@pytest.mark.parametrize("name", FLAGS)
def test_help_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert "Usage: batchgen validate" in out
    assert err == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["replay"], "Missing argument 'run'"),
        (["replay", "none"], "none does not exist; make the run with --out DIR --log full"),
        (["agreement"], "Missing option '--model'"),
        (["agreement", "--model", "none", "-i", "x"], "none"),
        (["compare"], "No such command 'compare'"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_prediction_runs_as_its_profile_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchgen.cli.prediction import _machine_as_profiled as as_profiled

    document = {"machine": {"threads": 2, "dtype": "bfloat16"}}
    path = tmp_path / "p.json"
    assert as_profiled(document, path, None) == ("bfloat16", 2)
    assert as_profiled(document, path, 2) == ("bfloat16", 2)
    assert as_profiled({}, path, 3) == ("float32", 3)
    with pytest.raises(UserError, match="measured with 2 threads, not with 1") as caught:
        as_profiled(document, path, 1)
    assert "--threads 2" in str(caught.value)
