"""Pipes, sockets, signals and bytes that are no text: one line, nothing replaced, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchgen.cli import _ended_by_signals, main

ROW = {"prompt_tokens": 100, "output_tokens": 20}
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
SPECIAL = ("pipe", "socket", "folder", "broken link")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("special") / "tiny"
    assert main(["model", "init", str(folder)]) == 0
    return folder


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("broken link").symlink_to("nowhere")
    Path("t.jsonl").write_text(json.dumps(ROW) + "\n")
    Path("in.jsonl").write_text('{"prompt": "hello", "max_tokens": 3}\n')
    capsys.readouterr()
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket")
        yield tmp_path


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in Path().iterdir()}
    assert main(args) == 2, args
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith("error: ")
    after = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in Path().iterdir()}
    assert after == before
    return err


OUTPUTS = {
    "exec": ["exec", "--model", "no-model-is-loaded", "-i", "in.jsonl"],
    "generate": ["trace", "generate", "-n", "3", "--part", "1 / constant:3 / constant:3"],
    "import": ["trace", "import", "t.jsonl"],
    "profile": ["profile", "--quick"],
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_only_files_are_replaced(
    force: list[str], command: str, kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused([*OUTPUTS[command], "-o", kind, *force], capsys)
    assert kind in err
    assert "name a" in err
    Path("link").symlink_to(kind)
    assert "link" in refused([*OUTPUTS[command], "-o", "link", *force], capsys)


INPUTS = {
    "trace": (["sim", "--trace"], "trace"),
    "faults": (["sim", "--trace", "t.jsonl", "--devices"], "--devices"),
    "input": (["exec", "--model", "no-model-is-loaded", "-o", "out.jsonl", "-i"], "input"),
    "log": (["validate", "replay", "--no-fresh"], "log"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_files(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, what = INPUTS[name]
    for kind in ("pipe", "socket", "broken link"):
        assert f"{what} {kind} is not a regular file, but a {kind}" in refused(
            [*args, kind], capsys
        )
    # Read, not written: the only device that a test may touch.
    assert f"{what} /dev/null is not a regular file, but a device" in refused(
        [*args, os.devnull], capsys
    )
    assert f"{what} none does not exist" in refused([*args, "none"], capsys)
    assert "cannot look at" in refused([*args, "x" * 5000], capsys)


def test_faults_with_a_byte_order_mark(here: Path) -> None:
    line = '{"at_s": 0.001, "kind": "slow", "gpu": 0, "factor": 2}\n'
    Path("faults.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode())
    args = ["sim", "--trace", "t.jsonl", "--model", "llama-3.1-8b", "--gpus", "1"]
    assert main([*args, "--faults", "faults.jsonl"]) == 0


@pytest.mark.parametrize(
    "args",
    [
        ["trace", "generate", "-n", "1", "-o", "x.jsonl", "--name", "\udcff"],
        ["trace", "import", "t.jsonl", "-o", "x.jsonl", "--name=a\udcff"],
        ["sim", "--trace", "\udcff.jsonl"],
        ["sim", "--trace", "t.jsonl", "--set", "order.part=\udcff"],
        ["exec", "--model", "m", "-i", "in.jsonl", "-o", "\udcff"],
        ["\udcff"],
    ],
    ids=lambda args: args[0].encode("ascii", "replace").decode(),
)
def test_bytes_that_are_no_text(
    args: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(args, capsys)
    assert "\\xff" in err
    assert "is not text in UTF-8; write it in UTF-8" in err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_nothing_behind(
    number: signal.Signals, here: Path, checkpoint: Path
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("ignored by whoever runs the tests, and so by what they start")
    row = json.dumps({"prompt": "hello", "max_tokens": 2000, "ignore_eos": True})
    Path("in.jsonl").write_text(f"{row}\n" * 64)
    Path("old.jsonl").write_text("old\n")
    command = [sys.executable, "-P", "-m", "batchgen.cli", "exec", "--model", str(checkpoint)]
    command += ["-i", "in.jsonl", "-o", "old.jsonl", "--force", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not Path("old.jsonl.job").exists() and time.monotonic() < limit:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3
    # While the model loads nothing is achieved, and nothing is left; later the job can go on.
    is_kept = "go on by the same command with --resume always" in err
    nothing = "no row has run and nothing is kept: the same command begins anew"
    assert is_kept or [line for line in err.splitlines() if line != nothing] == ["interrupted"]
    assert Path("old.jsonl.job").exists() == is_kept
    assert not list(here.glob(".*"))
    assert Path("old.jsonl").read_text() == "old\n"


def test_a_signal_in_a_finaliser_is_not_lost() -> None:
    """Python prints what `__del__` raises and goes on; subprocess has one after every call."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pytest.skip("handled by whoever runs the tests")

    class Ending:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    def job() -> None:
        Ending()
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            time.sleep(0.01)

    with _ended_by_signals(), pytest.raises(KeyboardInterrupt):
        job()


def test_a_signal_ends_the_command_whatever_became_of_it_on_its_way() -> None:
    """Python 3.11 makes a RuntimeError of what `__set_name__` raises, and imports run many."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        pytest.skip("handled by whoever runs the tests")

    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    with pytest.raises(KeyboardInterrupt), _ended_by_signals():
        type("Owner", (), {"field": Named()})
    with pytest.raises(ZeroDivisionError), _ended_by_signals():
        raise ZeroDivisionError


def test_a_path_that_the_machine_refuses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["model", "show", "x" * 5000], ["exec", "--model", "x" * 5000, "-i", "in.jsonl"]):
        args += ["-o", "out.jsonl"] if args[0] == "exec" else []
        err = refused(args, capsys)
        assert "File name too long" in err
        assert len(err) < 400


FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "model.safetensors.index.json",
)


def put(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "loop" else "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_in_a_model_folder(
    name: str, here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing waits for a pipe, and what is there but no file is not taken for absent."""
    for kind in ("pipe", "folder", "loop", "broken link"):
        model = Path(f"model of {kind}")
        shutil.copytree(checkpoint, model)
        put(kind, model / name)
        err = refused(["exec", "--model", str(model), "-i", "in.jsonl", "-o", "o"], capsys)
        assert str(model / name) in err
        assert ("Too many levels" if kind == "loop" else f"but a {kind}") in err


def test_a_file_that_may_not_be_read(
    here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, "model")
    Path("model/tokenizer.json").chmod(0)
    if os.access("model/tokenizer.json", os.R_OK):
        pytest.skip("root may read everything")
    err = refused(["exec", "--model", "model", "-i", "in.jsonl", "-o", "o"], capsys)
    assert "model/tokenizer.json cannot be read" in err
    Path("in.jsonl").chmod(0)
    err = refused(["exec", "--model", str(checkpoint), "-i", "in.jsonl", "-o", "o"], capsys)
    assert "'in.jsonl' is not readable" in err


def test_a_template_that_is_no_text(
    here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoint, "model")
    Path("model/chat_template.jinja").write_bytes(b"{{ messages }}\xff")
    err = refused(["exec", "--model", "model", "-i", "in.jsonl", "-o", "o"], capsys)
    assert "model/chat_template.jinja: is not UTF-8 (byte 14)" in err


@pytest.mark.parametrize(
    "flag", ["-i", "-o", "--model", "--out", "--manifest", "--error-file", "--job-dir"]
)
def test_loops_long_names_and_files_on_the_way(
    flag: str, here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("loop").symlink_to("loop")
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    good = {"-i": "in.jsonl", "-o": "o", "--model": str(checkpoint), "--out": "run"}
    for odd in ("loop", "one", "x" * 300, "loop/below", "pipe/below", "t.jsonl/below"):
        args = [word for pair in (good | {flag: odd}).items() for word in pair]
        err = refused(["exec", *args, "--force"], capsys)
        assert odd[:60] in err or f"folder {Path(odd).parent} " in err


def test_a_run_folder_may_be_a_link_to_one(here: Path, checkpoint: Path) -> None:
    Path("link").symlink_to("folder")
    args = ["exec", "--model", str(checkpoint), "-i", "in.jsonl", "-o", "o", "--out", "link"]
    for _ in range(2):
        assert main([*args, "--force", "--threads", "1"]) == 0
        assert Path("folder/run.json").is_file()
        assert Path("link").is_symlink()


def test_handlers_are_as_they_were(here: Path) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    assert main(["--version"]) == 0
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_no_output_harms_a_model_or_its_input(
    force: list[str], here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by its own name, a link or another name of the same file."""
    row = '{"prompt": "hello", "max_tokens": 2}\n'
    Path("rows.jsonl").write_text(row)
    os.link("rows.jsonl", "other.jsonl")
    Path("linked").symlink_to(checkpoint)
    config = (checkpoint / "config.json").read_bytes()
    command = ["exec", "--model", str(checkpoint), "-i", "rows.jsonl", "--threads", "1", *force]
    for output, said in (
        (str(checkpoint / "config.json"), "lies in the folder of the model"),
        (str(checkpoint / "new.jsonl"), "lies in the folder of the model"),
        ("linked/config.json", "lies in the folder of the model"),
        ("other.jsonl", "is the input"),
        ("rows.jsonl", "is the input"),
    ):
        err = refused([*command, "-o", output], capsys)
        assert said in err or (not force and "exists; give --force" in err), (output, err)
    assert Path("rows.jsonl").read_text() == row
    assert (checkpoint / "config.json").read_bytes() == config


def test_a_signal_in_a_callback_of_a_weak_reference_is_not_lost() -> None:
    """Nor around a fork: Python prints what is raised in callbacks of C, and goes on."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pytest.skip("handled by whoever runs the tests")

    class Thing:
        pass

    def gone(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    def job() -> None:
        thing = Thing()
        reference = weakref.ref(thing, gone)
        del thing
        assert reference() is None
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            time.sleep(0.01)

    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), _ended_by_signals():
        job()
    assert sys.unraisablehook is hook
