"""The folder of a job: begun, gone on with, owned by one, killed at every step."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import batchgen.job.folder as folders
from batchgen.errors import Unfinished, UserError
from batchgen.job import final, journal
from batchgen.job.final import write_final
from batchgen.job.fingerprint import check_same, file_digest, model_digest, sampled_digest
from batchgen.job.folder import check_resume, default_folder, open_folder

PRINT = {"input": "1", "seed": "2"}
NUM_ROWS = 12


def begin(path: Path, **options: Any) -> Any:
    return open_folder(path, fingerprint=PRINT, config={"a": 1}, **options)


def work(output: Path, *, resume: str = "if-possible", force: bool = False) -> int:
    """A job as `batchgen exec` has one, without a model; returns the rows answered earlier."""
    with begin(default_folder(output), resume=resume, force=force) as folder:
        done = folder.journal.answered()
        folder.note(rows=NUM_ROWS)
        noted = folder.told.get("output_sha256")
        if not (noted and output.exists() and file_digest(output)[0] == noted):
            for row in range(NUM_ROWS):
                if row >= len(done) or not done[row]:
                    folder.journal.answer(row, f'{{"row":{row},"at":{folder.created}}}'.encode())
                    if row % 4 == 3:
                        folder.journal.sync()
            folder.journal.sync()
            folder.status({"done": NUM_ROWS})
            write_final(
                output,
                folder.journal.lines(),
                force=force,
                placing=lambda sha256: folder.note(output_sha256=sha256),
            )
        folder.done()
        return int(done.sum())


def crash(path: Path, row: int = 0, line: bytes = b"{}") -> Any:
    """The folder of a job that answers one row and dies."""
    found = []
    with suppress(ZeroDivisionError), begin(path, resume="if-possible") as folder:
        found.append(folder)
        folder.journal.answer(row, line)
        raise ZeroDivisionError
    return found[0]


def steps(calls: Callable[[str], None], patch: pytest.MonkeyPatch) -> None:
    """`calls` hears of everything that touches the disk, before and after it."""

    def watched(holder: object, name: str) -> None:
        plain = getattr(holder, name)

        def call(*args: Any, **options: Any) -> Any:
            calls(f"before {name}")
            found = plain(*args, **options)
            calls(f"after {name}")
            return found

        patch.setattr(holder, name, call)

    for holder, name in (
        (os, "replace"),
        (os, "rename"),
        (os, "link"),
        (os, "fsync"),
        (os, "unlink"),
        (shutil, "rmtree"),
        (Path, "mkdir"),
        (Path, "unlink"),
        (journal.Journal, "_commit"),
        (folders, "write_whole"),
        (final, "place"),
    ):
        watched(holder, name)


def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step in turn: killed there, gone on with, and the file is that of an undisturbed job."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    work(tmp_path / "whole")
    want = (tmp_path / "whole").read_bytes()
    assert len(want.splitlines()) == NUM_ROWS
    seen: list[str] = []
    for number in range(1000):
        output = tmp_path / f"{number}"
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            count = 0

            def step(name: str, number: int = number, writes: int = writes) -> None:
                nonlocal count
                if count == number:
                    os.write(writes, name.encode())
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(60)  # this thread, until the signal has come
                count += 1

            steps(step, monkeypatch)
            try:
                work(output)
            finally:
                os._exit(0)
        os.close(writes)
        _, status = os.waitpid(child, 0)
        seen.append(os.read(reads, 100).decode())
        os.close(reads)
        if status == 0:
            assert output.read_bytes() == want
            break
        if default_folder(output).exists() or not output.exists():
            work(output)
        assert output.read_bytes() == want, seen[-1]
        names = {one.name for one in tmp_path.iterdir() if not one.name.startswith(".")}
        assert names == {"whole", *map(str, range(number + 1))}, seen[-1]
    assert {one.split()[-1] for one in seen if one} >= {
        "replace", "link", "fsync", "rename", "rmtree", "mkdir", "_commit", "write_whole", "place",
    }  # fmt: skip
    assert len(seen) > 40


def test_going_on_and_beginning_anew(tmp_path: Path) -> None:
    output = tmp_path / "out"
    path = default_folder(output)
    with pytest.raises(UserError, match="no unfinished job is in"):
        work(output, resume="always")
    crash(path, 0, b'{"row":0,"at":5}')
    with pytest.raises(UserError, match="holds an unfinished job; go on with --resume always"):
        work(output, resume="never")
    assert work(output, resume="always") == 1
    assert json.loads(output.read_text().splitlines()[0])["at"] == 5  # not answered again
    crash(path)
    assert work(output, resume="if-possible", force=True) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_job_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), begin(tmp_path / "j"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_attempts_and_creation_belong_to_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = set()
    for attempt in range(1, 4):
        monkeypatch.setattr(time, "time", lambda attempt=attempt: 1e9 - attempt)  # backwards, too
        folder = crash(tmp_path, attempt)
        assert folder.attempts == attempt
        created.add(folder.created)
    assert created == {int(1e9 - 1)}


@pytest.mark.parametrize("field", sorted(PRINT))
def test_every_field_of_the_fingerprint_is_refused_by_name(field: str, tmp_path: Path) -> None:
    crash(tmp_path)
    other = PRINT | {field: "else"}
    with (
        pytest.raises(UserError, match=f"begun with another {field}: {PRINT[field]}, and this is"),
        open_folder(tmp_path, fingerprint=other, config={}, resume="always"),
    ):
        pass
    with pytest.raises(UserError, match="another x y: nothing, and this is 1"):
        check_same(PRINT, PRINT | {"x_y": "1"}, tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from batchgen.job.folder import open_folder
with open_folder(Path(sys.argv[1]), fingerprint={"input": "1", "seed": "2"}, config={}) as folder:
    folder.journal.answer(0, b"{}")
    folder.journal.sync()
    print("holds", flush=True)
    time.sleep(60)
"""


def test_one_owner_and_a_stale_one(tmp_path: Path) -> None:
    """The second is refused while the first lives, and goes on at once when it was killed, also if
    the number of its process belongs to another one by now."""
    path = tmp_path / "job"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(UserError, match=f"is running in process {holder.pid} on "):
            begin(path, resume="always").__enter__()
        with pytest.raises(UserError, match="is running"):
            begin(path, force=True).__enter__()
        holder.kill()
    told = json.loads((path / "owner.json").read_text())
    (path / "owner.json").write_text(json.dumps(told | {"pid": os.getpid()}))
    with begin(path, resume="always") as folder:
        assert folder.journal.num_answers() == 1
        folder.done()
    assert not path.exists()


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "one.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="is not the folder of a job"):
            begin(thesis, force=force).__enter__()
    with pytest.raises(UserError, match="is not a folder, but a file"):
        check_resume(thesis / "one.tex", "never", force=False)
    with pytest.raises(UserError, match="--resume is 'x'; choose one of never, always"):
        check_resume(tmp_path / "new", "x", force=False)
    with pytest.raises(UserError, match="give one of the two"):
        check_resume(tmp_path / "new", "always", force=True)
    with pytest.raises(UserError, match="cannot make the folder"):
        begin(tmp_path / "no" / "such").__enter__()
    assert (thesis / "one.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"form": 1}', '{"form": 7}', '{"form": 1, "created": "x"}']
)
def test_a_damaged_job_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(UserError, match=r"begin anew with --force|begin it anew"):
        begin(tmp_path, resume="always").__enter__()
    with begin(tmp_path, force=True) as folder:
        folder.done()


def test_a_note_that_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with begin(tmp_path / "j") as folder:

        def full(*_: object) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(Unfinished, match=r"cannot write .*job\.json: No space left"):
            folder.note(rows=3)
        folder.status({})  # of no consequence


def test_digests_of_files_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of any byte of a small file, and of the sampled ones of a large file, is seen."""
    weights = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    data = bytearray(random.Random(1).randbytes(300_000))
    weights.write_bytes(data)
    (tmp_path / "README.md").write_text("not the model")
    before = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("still not")
    assert model_digest(tmp_path) == before
    data[123_456] ^= 1
    weights.write_bytes(data)
    assert model_digest(tmp_path) != before
    monkeypatch.setattr("batchgen.job.fingerprint.SMALL_BYTES", 1000)
    monkeypatch.setattr("batchgen.job.fingerprint.PIECE_BYTES", 5000)
    monkeypatch.setattr("batchgen.job.fingerprint.SAMPLE_BYTES", 100)
    large = sampled_digest(weights)
    for place in (0, 4999, len(data) - 1):
        data[place] ^= 1
        weights.write_bytes(data)
        assert sampled_digest(weights) != large
        data[place] ^= 1
    weights.write_bytes(bytes(data) + b"x")
    assert sampled_digest(weights) != large
    with pytest.raises(UserError, match="cannot read"):
        file_digest(tmp_path / "none")


def test_who_looks_stands_in_nobody_s_way(tmp_path: Path) -> None:
    from batchgen.job.owner import owned, owner_of

    assert owner_of(tmp_path) is None
    with owned(tmp_path):
        assert owner_of(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert owner_of(tmp_path) is None  # the file is there and says what was
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.001):
            owner_of(tmp_path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(50):
            with owned(tmp_path):
                pass
    finally:
        ended.set()
        looking.join()
