"""The root command: listing, versions, exit codes, and one line for every mistake."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import batchgen
from batchgen.cli import main
from batchgen.cli.group import COMMANDS
from batchgen.errors import IllegalTransition, UserError


def test_commands_are_those_of_the_design() -> None:
    assert list(COMMANDS) == [
        *("sim", "sweep", "exec", "job", "serve", "validate", "profile", "plan", "policy"),
        *("trace", "model", "report", "bench"),
    ]


def test_help_lists_commands_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("sim", "report"):
        assert COMMANDS[name] in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    form = ", compiled" if batchgen.is_compiled() else ""
    assert capsys.readouterr().out == f"batchgen {batchgen.__version__}{form}\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["repot"],
            "error: No such command 'repot'. Did you mean 'report'?; see 'batchgen --help'",
        ),
        (["--nope"], "error: No such option: --nope; see 'batchgen --help'"),
        (["sim"], "error: Missing option '--trace'; see 'batchgen sim --help'"),
        (
            ["sim", "--trace", "nowhere.jsonl"],
            "error: trace nowhere.jsonl does not exist; give a JSONL file, plain or gzip",
        ),
        (
            ["sim", "--trace", "t", "--policy", "a", "--compare", "b,c"],
            "error: --policy and --compare are both given; give one of them",
        ),
        (["report", "nowhere"], "error: nowhere is not a folder; give a run directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], args: list[str], line: str
) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == line + "\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            UserError("model 'x' is unknown", remedy="see 'batchgen model list'"),
            2,
            "error: model 'x' is unknown; see 'batchgen model list'",
        ),
        (
            IllegalTransition("row 7: done\n twice"),
            4,
            "internal error (illegal_transition): row 7: done twice; "
            "repeat with --debug for the traceback",
        ),
        (
            KeyError("engine"),
            4,
            "internal error, a bug in batchgen: KeyError: 'engine'; "
            "repeat with --debug for the traceback",
        ),
        (KeyboardInterrupt(), 3, "interrupted"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "error: this needs torch; install it by: pip install 'batchgen[exec]'",
        ),
        (  # what `tempfile` makes of a full disk
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']"),
            2,
            "error: no folder for temporary files can be written; free some disk, or set TMPDIR",
        ),
    ],
)
def test_errors_of_a_command(
    capsys: pytest.CaptureFixture[str],
    toy_simulator: SimpleNamespace,
    trace_file: str,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    toy_simulator.fail = error
    assert main(["sim", "--trace", trace_file, "--policy", "vllm"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == line + "\n"


def test_debug_anywhere_shows_the_traceback(
    toy_simulator: SimpleNamespace, trace_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And changes nothing else: the line and the exit code are those of without."""
    toy_simulator.fail = KeyError("engine")
    assert main(["sim", "--trace", trace_file, "--policy", "vllm", "--debug"]) == 4
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "bug in batchgen: KeyError: 'engine'" in err.splitlines()[-1]
    assert main(["--debug", "sim", "--trace", trace_file, "--policy", "vlm"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: unknown ")
