"""What every hostile case must hold to, and a way to try thousands: see `Place.check`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_FILE = 64 << 20  # bytes, so that a case fills no disk
MOST_MEMORY = 3 << 30  # bytes beyond what a process begins with
MOST_LINE = 600  # characters of a line on stderr
CODES = (0, 1, 2, 3)
NEVER = (
    "Traceback",
    "internal error,",
    "internal error (",
    "Exception ignored",
    "Fatal Python error",
    "leaked",
)
SOAK = bool(os.environ.get("BATCHGEN_SOAK"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    argv: list[str]
    code: int
    late: bool
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command, what it may write, and more of the task of `forks.py`."""

    argv: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    is_partial: bool = False  # it may have done a part before it is refused: the disk was full
    task: dict[str, Any] = field(default_factory=dict)


class Forks:
    """The process that forks: `run` starts a command in it and waits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("forks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "BATCHGEN_COMPILED": "0"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        assert self._out.readline() == "ready\n"

    def run(self, argv: Sequence[str], cwd: Path, **task: Any) -> Ended:
        out = self.folder / "stdout"
        whole = {"argv": list(argv), "cwd": str(cwd), "out": str(out), "err": None} | task
        self._in.write(json.dumps(whole) + "\n")
        self._in.flush()
        answer = json.loads(self._out.readline())
        printed = b"" if "out" in task else out.read_bytes()
        said = printed.decode("utf-8", "backslashreplace")
        return Ended(argv=list(argv), out=said, **answer)

    def close(self) -> None:
        self._in.close()
        self._process.wait(60)
        self._out.close()


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """A `Forks` that is ended."""
    one = Forks(folder)
    try:
        yield one
    finally:
        one.close()


State = dict[str, tuple[str, str]]


def state_of(folder: Path) -> State:
    """What is in a folder: kind and rights, digest of the bytes, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        data = ""
        if stat.S_ISREG(mode):
            data = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(mode):
            data = os.readlink(path)
        found[str(path.relative_to(folder))] = (oct(mode), data)
    return found


def faults_of(
    ended: Ended,
    before: State,
    after: State,
    outputs: Sequence[str] = (),
    *,
    is_heard: bool = True,
    is_partial: bool = False,
    signals: Sequence[int] = (),
) -> list[str]:
    """What is wrong with how a command ended: nothing, if it kept every promise.

    is_heard: somebody reads stderr. outputs: names that it may make, change or, for folders, fill;
    whatever else was there must be as it was. A command that is refused leaves nothing new at all,
    unless it `is_partial`: its disk was full, and the files that it had made by then stay.
    signals: exit codes that it may have, too.
    """
    found = []
    if ended.late:
        return ["it hangs"]
    if ended.code not in (*CODES, *signals):
        found.append(f"exit code {ended.code}")
    never = NEVER[1:] if "--debug" in ended.argv else NEVER
    found += [f"says {word!r}" for word in never if word in ended.err]
    lines = ended.err.splitlines()
    for one in lines:  # what says that a file was written has its whole path
        if len(one) > MOST_LINE and (one.startswith("error") or len(one) > 8 * MOST_LINE):
            found.append(f"a line of {len(one)} characters")
    if "bar" not in ended.argv and re.search(r"[^\x20-\x7e\n\u00a0-\U0010ffff]", ended.err):
        found.append("control characters on stderr")
    if ended.code == 2:
        if not is_heard or ended.err.startswith("Usage: "):
            pass  # a group of commands without one of them
        elif not lines or not lines[-1].startswith("error: "):
            found.append("no line that says why")
        elif sum(line.startswith("error: ") for line in lines) > 1:
            found.append("several error lines")
        counted = "--dry-run" in ended.argv or list(ended.argv[:2]) == ["validate", "input"]
        if ended.out and not is_partial and not counted:
            found.append("refused, and prints on stdout")

    def is_output(name: str) -> bool:
        """It, the folders above it and all inside; and the job of `exec` beside it."""
        return any(
            one in ("*", name)
            or one.startswith(f"{name}/")
            or name.startswith((f"{one}/", f"{one}.job"))
            for one in outputs
        )

    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        if name not in after and is_output(name):
            continue  # the books of a job that is done
        if name not in after:
            found.append(f"took away {name}")
        elif name not in before:
            if Path(name).name.startswith(".") or name.endswith(".tmp") or "batchgen-" in name:
                found.append(f"left {name}")
            elif not is_output(name):
                found.append(f"made {name}")
            elif ended.code == 2 and not is_partial:
                found.append(f"refused, and left {name}")
        elif Path(name).name == "owner.json":
            continue  # who had a look at a job
        elif not is_output(name) or (ended.code == 2 and not is_partial):
            found.append(f"changed {name}")
    return found


class Place:
    """A folder with the files of a case, its temporary folder inside."""

    def __init__(self, one: Forks, folder: Path) -> None:
        self.forks, self.folder = one, folder
        (folder / "tmp").mkdir(exist_ok=True)

    def run(self, *argv: str, **task: Any) -> Ended:
        env = {"TMPDIR": str(self.folder / "tmp")} | task.pop("env", {})
        limits = {"fsize": MOST_FILE, "memory": MOST_MEMORY} | task
        return self.forks.run(argv, self.folder, env=env, **limits)

    def check(self, *argv: str, outputs: Sequence[str] = (), **task: Any) -> Ended:
        """Run it, and fail unless every promise is kept."""
        ended, faults = self.faults(*argv, outputs=outputs, **task)
        assert not faults, told(ended, faults)
        return ended

    def faults(
        self, *argv: str, outputs: Sequence[str] = (), is_partial: bool = False, **task: Any
    ) -> tuple[Ended, list[str]]:
        before = state_of(self.folder)
        ended = self.run(*argv, **task)
        # The second signal ends a process as it ends any other, and so does one that comes when the
        # command has told its result.
        sent = [-int(getattr(signal, name)) for _, name in task.get("kill", [])]
        if not (ended.out or ended.err):
            sent = sent[1:]
        is_heard = "err" not in task and 2 not in task.get("closed", ())
        after = state_of(self.folder)
        return ended, faults_of(
            ended,
            before,
            after,
            outputs,
            is_heard=is_heard,
            is_partial=is_partial,
            signals=sent,
        )


def told(ended: Ended, faults: Sequence[str]) -> str:
    """A case that broke a promise, for whoever mends it."""
    words = " ".join(repr(word if len(word) < 300 else word[:300] + "...") for word in ended.argv)
    said = f"{ended.err[:200]}...{ended.err[-400:]}"
    return f"{words}\n  {'; '.join(faults)}\n  exit {ended.code}: {said}"
