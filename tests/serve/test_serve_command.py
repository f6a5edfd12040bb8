"""What `batchgen serve` refuses before it loads a model: one line each."""

from __future__ import annotations

import socket
import sqlite3
from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.serve.listen import is_local
from batchgen.serve.store import open_store


def refused(capsys: pytest.CaptureFixture[str], model: Path, state: Path, *options: str) -> str:
    assert main(["serve", "--model", str(model), "--state", str(state), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATCHGEN_API_KEY", raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_no_others_without_a_key(
    host: str, capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    said = refused(capsys, model, tmp_path / "state", "--host", host)
    assert "there is no key; set BATCHGEN_API_KEY" in said
    assert not (tmp_path / "state").exists()


def test_only_this_machine_is_local() -> None:
    assert all(is_local(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "169.254.0.1"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--host", "example.com"], "is not an IP address"),
        (["--host", "127.0.0.1", "--api-key", ""], "the API key is empty"),
        (["--api-key", "a b"], "holds blanks"),
        (["--api-key", "\u00e9"], "holds blanks"),
        (["--port", "99999"], "--port"),
        (["--served-model-name", ""], "is no name"),
        (["--set", "nonsense"], "nonsense"),
        (["--max-batches", "0"], "--max-batches"),
        (["--slice", "-1"], "--slice"),
        (["--slice", "nan"], "--slice"),
        (["--policy", "nobody"], "nobody"),
        (["--exact", "--dtype", "bfloat16"], "exact"),
        (["--temperature", "1e9"], "--temperature"),
    ],
)
def test_options_that_cannot_be(
    options: list[str],
    word: str,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
) -> None:
    assert word in refused(capsys, model, tmp_path / "state", "--port", "0", *options)


def test_a_port_that_somebody_has(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        said = refused(capsys, model, tmp_path / "state", "--port", port)
    assert said == f"error: port {port} of 127.0.0.1 is in use; stop who has it, or give --port\n"


def test_a_state_that_another_server_has(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    with open_store(tmp_path / "state"):
        said = refused(capsys, model, tmp_path / "state")
    assert "the server in" in said
    assert "is running in process" in said


def test_folders_that_are_no_state(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "is not the state of a server" in refused(capsys, model, tmp_path / "mine")
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, model, tmp_path / "file")
    assert "file" in refused(capsys, model, tmp_path / "file" / "below")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "state.sqlite").write_bytes(b"no database" * 1000)
    assert "cannot open" in refused(capsys, model, tmp_path / "odd")
    with open_store(tmp_path / "newer"):
        pass
    with sqlite3.connect(tmp_path / "newer" / "state.sqlite") as base:
        base.execute("PRAGMA user_version=99")
    base.close()
    assert "has form 99" in refused(capsys, model, tmp_path / "newer")


def test_models_that_are_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, tmp_path / "none", tmp_path / "state", "--port", "0")
    assert "is not a folder" in said
    (tmp_path / "empty").mkdir()
    refused(capsys, tmp_path / "empty", tmp_path / "state", "--port", "0")
