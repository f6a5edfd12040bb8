"""Building the compiled operations: what a compiler says is told, a damaged library is never used.

The compilers are shell scripts: what is tested is how they are called and what becomes of their
output. That a real one builds the real sources, and builds them right, the tests of attention and
experts say.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.exec import compiled
from batchgen.exec.native_build import CannotBuildError, cache_folder, library_path

# Writes its output in two halves, so that a reader between them would see the first.
GOOD = """echo built >> {log}
while [ "$1" != -o ]; do shift; done
printf first > "$2"
sleep 0.2
printf second >> "$2"
"""
HALVES = b"firstsecond"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def compiler(here: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CXX becomes a script that has a version; its log has a line for each build."""
    path, log = here / "cxx", here / "log"
    version = '#!/bin/sh\nif [ "$1" = --version ] || [ "$2" = --version ]; then echo 1; exit; fi\n'
    path.write_text(version + script.format(log=log))
    path.chmod(0o755)
    log.write_text("")
    monkeypatch.setenv("CXX", str(path))
    return log


def test_it_is_built_once_and_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = compiler(here, GOOD, monkeypatch)
    first = library_path()
    assert first.read_bytes() == HALVES
    assert library_path() == first
    assert log.read_text() == "built\n"
    assert list(first.parent.iterdir()) == [first]
    monkeypatch.setenv("CXX", f"{here / 'cxx'} -DOTHER")  # other options, another library
    assert library_path() != first
    assert log.read_text() == "built\n" * 2


@pytest.mark.parametrize("damage", [b"", HALVES[:5], HALVES + b"x", b"fIrstsecond"])
def test_a_damaged_library_is_built_again(
    damage: bytes, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = compiler(here, GOOD, monkeypatch)
    path = library_path()
    path.write_bytes(damage)
    assert library_path().read_bytes() == HALVES
    assert log.read_text() == "built\n" * 2
    assert list(path.parent.iterdir()) == [path]


def test_builders_who_meet_see_only_whole_files(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(here, GOOD, monkeypatch)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: library_path().read_bytes(), range(6)))
    assert found == [HALVES] * 6


LINKER = """ld: cannot find -lomp: No such file or directory
clang: error: linker command failed with exit code 1"""
FAILING = {
    "error": (
        'echo "In file included from a.cpp:1:\na.cpp:7:1: error: no type Vec" >&2; exit 1',
        r"failed: a.cpp:7:1: error: no type Vec; needed: g\+\+ 12 or newer, or clang\+\+ 15",
    ),
    "openmp": (f'echo "{LINKER}" >&2; exit 1', "cannot find -lomp.*; its OpenMP is missing"),
    "silent": ("exit 7", "failed: exit 7; needed"),
    "odd": ("printf 'error: \\033[1m\\377\\n' >&2; exit 1", r"failed: error: \\x1b\[1m"),
    "nothing": ("exit 0", "cannot be kept .No such file"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_compiler_that_fails_says_why(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, message = FAILING[name]
    compiler(here, script, monkeypatch)
    with pytest.raises(CannotBuildError, match=message) as error:
        library_path()
    assert str(error.value).isprintable()
    assert not list((here / "cache" / "batchgen").iterdir())


def test_no_compiler_and_no_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("no-such-compiler", "'", str(here)):
        monkeypatch.setenv("CXX", given)
        with pytest.raises(CannotBuildError, match=r"CXX is .*, which is not there"):
            library_path()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(CannotBuildError, match=r"no C\+\+ compiler; needed: g\+\+ 12"):
        library_path()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cxx"))  # a file
    compiler(here, GOOD, monkeypatch)
    with pytest.raises(CannotBuildError, match=r"cannot be kept .*; set XDG_CACHE_HOME"):
        library_path()


def test_a_run_says_why_it_was_slow(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "init", str(here / "tiny")]) == 0
    (here / "in.jsonl").write_text('{"prompt": "hello", "max_tokens": 3}\n')
    compiler(here, FAILING["error"][0], monkeypatch)
    args = ["exec", "--model", str(here / "tiny"), "-i", str(here / "in.jsonl"), "--threads", "1"]
    args += ["--force", "-o", str(here / "out.jsonl"), "--out", str(here / "run")]
    compiled._load.cache_clear()
    try:
        capsys.readouterr()
        assert main(args) == 0
        why = "a.cpp:7:1: error: no type Vec"
        err = capsys.readouterr().err
        assert err.count(why) == 1
        assert "note: attention and experts ran in torch" in err
        config = json.loads((here / "run" / "run.json").read_text())["config"]
        assert config["kernels"] == "torch"
        assert why in config["kernels_remark"]
        monkeypatch.setenv("BATCHGEN_COMPILED", "0")
        assert main(args) == 0
        assert "BATCHGEN_COMPILED=0 turns" in capsys.readouterr().err
    finally:
        compiled._load.cache_clear()


@pytest.mark.parametrize(
    ("mode", "parent", "is_refused"),
    [(0o700, 0o755, False), (0o755, 0o1777, False), (0o777, 0o755, True), (0o775, 0o700, True),
     (0o700, 0o777, True), (0o700, 0o775, False)],
)  # fmt: skip
def test_nothing_is_loaded_from_where_others_write(
    mode: int, parent: int, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "cache"
    (base / "batchgen").mkdir(parents=True)
    (base / "batchgen").chmod(mode)
    base.chmod(parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    if is_refused:
        with pytest.raises(CannotBuildError, match=r"others can write .*chmod go-w"):
            cache_folder()
    else:
        assert cache_folder() == base / "batchgen"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o700)
    assert cache_folder() == tmp_path / "home/.cache/batchgen"
