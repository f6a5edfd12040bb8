"""The output file: every line, one rename, never over a file that was there, and nothing lost."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from batchgen.errors import Unfinished
from batchgen.job.final import write_final
from batchgen.paths import kind_of


def kept_file(error: Unfinished) -> Path:
    """The file that the one line of an error names."""
    found = re.search(r"answers are in (\S+\.tmp)", str(error))
    assert found is not None, error
    assert "\n" not in str(error)
    return Path(found[1])


def refuse(number: int) -> Callable[..., None]:
    def call(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def put(
    path: Path,
    lines: Iterable[bytes] = (b"{}",),
    *,
    force: bool = False,
    before: Callable[[], object] = lambda: None,
) -> str:
    """`before`: what happens when all is written and the file is to get its name."""
    return write_final(path, lines, force=force, placing=lambda _: before())


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    told: list[str] = []
    found = write_final(path, [b"a", b"", b"b"], force=False, placing=told.append)
    assert path.read_bytes() == b"a\n\nb\n"
    assert [found] == told == [hashlib.sha256(path.read_bytes()).hexdigest()]
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(Unfinished, match="appeared") as error:
        put(path, before=lambda: path.write_text("precious"))
    assert path.read_text() == "precious"
    assert kept_file(error.value).read_text() == "{}\n"


def test_a_pipe_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "late"
    with pytest.raises(Unfinished, match="late is not a regular file, but a pipe") as error:
        put(path, force=True, before=lambda: os.mkfifo(path))
    assert kind_of(path) == "pipe"
    assert kept_file(error.value).read_text() == "{}\n"


NO_LINKS = [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES]


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_where_there_are_no_links(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT and some network file systems: the answers get their name all the same."""
    monkeypatch.setattr(os, "link", refuse(number))
    path = tmp_path / "out.jsonl"
    put(path, [b'{"a":1}'])
    assert path.read_text() == '{"a":1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    late = tmp_path / "late.jsonl"
    with pytest.raises(Unfinished, match="appeared") as error:
        put(late, before=lambda: late.write_text("precious"))
    assert late.read_text() == "precious"
    assert kept_file(error.value).read_text() == "{}\n"


@pytest.mark.parametrize("force", [False, True])
def test_a_name_that_cannot_be_had_costs_no_answer(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))
    with pytest.raises(Unfinished, match="No space left") as error:
        put(tmp_path / "out.jsonl", [b'{"a":1}'], force=force)
    kept = kept_file(error.value)
    assert kept.read_text() == '{"a":1}\n'
    assert list(tmp_path.iterdir()) == [kept]  # no empty file under the output's name


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["removed", "moved", "swept"])
def test_a_folder_that_goes_meanwhile(way: str, force: bool, tmp_path: Path) -> None:
    """The bytes are still in the open file: the folder is made again, the output is in place."""
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    path = folder / "out.jsonl"

    def disturb() -> None:
        if way == "removed":
            shutil.rmtree(tmp_path / "deep")
        elif way == "moved":
            folder.rename(tmp_path / "elsewhere")
        else:
            for temporary in folder.glob(".*"):
                temporary.unlink()

    put(path, [b"0", b"1", b"2"], force=force, before=disturb)
    assert path.read_text() == "0\n1\n2\n"
    assert [p.name for p in folder.iterdir()] == ["out.jsonl"]


def test_a_folder_that_cannot_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    folder = tmp_path / "folder"
    folder.mkdir()

    def disturb() -> None:
        shutil.rmtree(folder)
        folder.write_text("a file now")

    with pytest.raises(Unfinished, match="cannot be put in place") as error:
        put(folder / "out.jsonl", [b'{"a":1}'], before=disturb)
    kept = kept_file(error.value)
    assert kept.parent == spare
    assert kept.read_text() == '{"a":1}\n'


@pytest.mark.parametrize("num_rows", [2, 40])
def test_a_disk_that_fills(num_rows: int, tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk: the same calls fail, for real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(Unfinished, match=r"cannot write .* all answers are kept; make room"):
            put(tmp_path / "out.jsonl", [b"y" * 60_000] * num_rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_an_interruption_while_it_is_put_in_place(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path / "out.jsonl", force=force)
    assert not list(tmp_path.iterdir())


def test_a_signal_while_the_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there before its maker knows: a signal comes when the system call returns."""
    make = Path.open

    def made_and_interrupted(path: Path, mode: str = "r", **_: object) -> None:
        make(path, mode).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", made_and_interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())
