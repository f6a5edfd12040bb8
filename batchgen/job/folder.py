"""The folder of a job that runs: journal, owner, status, and what the job is. It runs nothing.

    OUTPUT.job/  job.json  journal.sqlite  owner.json  status.json  decisions-N.jsonl.gz

`job.json` says what the job is and when it was begun: all that a later process needs to go on with
it. `decisions-1.jsonl.gz` has the decisions of the first process, as far as it came. The folder
goes when the output is in place.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batchgen
from batchgen.errors import Unfinished, UserError
from batchgen.job.fingerprint import Fingerprint, check_same
from batchgen.job.journal import Journal, holds_any
from batchgen.job.owner import NAME as OWNER
from batchgen.job.owner import owned
from batchgen.paths import beside, kind_of, temporary_name

FORM = 1
RESUME = ("never", "always", "if-possible")
JOB, JOURNAL, STATUS = "job.json", "journal.sqlite", "status.json"
LOG_END = ".jsonl.gz"


def default_folder(output: Path) -> Path:
    """Beside the output, with its name."""
    return output.with_name(f"{output.name[:200]}.job")


def now_s() -> int:
    """Unix seconds; `SOURCE_DATE_EPOCH` in their place, for outputs that are to be equal."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else int(time.time())


@dataclass(slots=True)
class JobFolder:
    """The folder of the job that this process owns. `told`: what its `job.json` says."""

    path: Path
    journal: Journal
    told: dict[str, Any]
    is_resumed: bool
    is_kept: bool = True  # the folder stays when the context ends

    @property
    def created(self) -> int:
        """Unix seconds: when the job was begun."""
        return int(self.told["created"])

    @property
    def attempts(self) -> int:
        """Processes that have worked on it, this one included."""
        return int(self.told["attempts"])

    @property
    def num_rows(self) -> int:
        """Rows of the input; -1 as long as nobody has read all of them."""
        return int(self.told.get("rows", -1))

    def note(self, **facts: Any) -> None:
        """Put more facts into `job.json`. Raises Unfinished if the disk refuses."""
        self.told |= facts
        try:
            write_whole(self.path / JOB, self.told)
        except OSError as error:
            raise Unfinished(
                f"cannot write {self.path / JOB}: {error.strerror}",
                remedy="make room, then go on with --resume always",
            ) from None

    def log_path(self, *, alone: bool = False) -> Path:
        """Where the decisions of this process go; `alone`: those about rows that run one by one
        after the others, for memory was short."""
        return self.path / f"decisions-{self.attempts}{'-alone' * alone}{LOG_END}"

    def status(self, value: Mapping[str, Any]) -> None:
        """Replace the status file. What the disk refuses stops no job."""
        with suppress(OSError):
            write_whole(self.path / STATUS, value, durable=False)

    def done(self) -> None:
        """The output is in place, or nothing was begun: the folder goes with the context."""
        self.is_kept = False


def check_resume(path: Path, resume: str, *, force: bool) -> None:
    """Raises UserError for a folder that cannot be begun or gone on with; before any long work."""
    if resume not in RESUME:
        raise UserError(f"--resume is '{resume}'", remedy=f"choose one of {', '.join(RESUME)}")
    if force and resume == "always":
        raise UserError(
            "--force begins anew, --resume always does not", remedy="give one of the two"
        )
    kind = kind_of(path)
    if kind not in ("", "folder"):
        raise UserError(f"{path} is not a folder, but a {kind}", remedy="move it out of the way")
    if kind == "folder":
        check_files(path)
    exists = kind == "folder" and (path / JOB).is_file()
    if kind == "folder" and not exists and not all(_is_ours(one) for one in path.iterdir()):
        raise UserError(
            f"{path} is not the folder of a job (no {JOB})", remedy="move it out of the way"
        )
    if resume == "always" and not exists:
        raise UserError(
            f"no unfinished job is in {path}", remedy="leave --resume always out to begin one"
        )
    if resume == "never" and exists and not force:
        raise UserError(
            f"{path} holds an unfinished job",
            remedy="go on with --resume always, or begin anew with --force",
            code="unfinished",
        )


def check_files(path: Path) -> None:
    """Raises UserError for what is no regular file under a name of ours: a pipe would be waited
    for."""
    for name in (JOB, JOURNAL, STATUS, OWNER, *(one.name for one in logs_in(path))):
        kind = kind_of(path / name)
        if kind not in ("", "file"):
            raise UserError(
                f"{path / name} is not a regular file, but a {kind}",
                remedy="move the folder out of the way",
            )


BOOKS = (JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm", STATUS)
OURS = {JOB, *BOOKS, OWNER, "input"}


def _is_ours(path: Path) -> bool:
    """A file of a job's folder, or what a killed process left of one."""
    return (
        path.name in OURS
        or _is_log(path)
        or path.name.startswith(tuple(f".{name}." for name in (JOB, STATUS)))
    )


def _is_log(path: Path) -> bool:
    return path.name.startswith("decisions") and path.name.endswith(LOG_END)


def logs_in(path: Path) -> list[Path]:
    """The decision logs of a job's folder or of a run directory, in the order of their runs."""

    def turn(log: Path) -> tuple[int, str]:
        number = log.name.removesuffix(LOG_END).partition("-")[2].partition("-")[0]
        return (int(number) if number.isdecimal() else sys.maxsize, log.name)

    return sorted(filter(_is_log, path.iterdir()), key=turn)


def write_whole(path: Path, value: object, *, durable: bool = True) -> None:
    """JSON by a temporary name and a rename."""
    temporary = temporary_name(path)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_job(path: Path) -> dict[str, Any]:
    """What `job.json` of a folder says. Raises UserError."""
    name = path / JOB
    try:
        value = json.loads(name.read_text(encoding="utf-8"))
        if value["form"] != FORM:
            raise UserError(
                f"{name} has form {value['form']!r:.20}, this version reads {FORM}",
                remedy="go on with the version that began it, or begin anew with --force",
            )
        int(value["created"]), int(value["attempts"]), dict(value["fingerprint"])
    except OSError as error:
        raise UserError(
            f"cannot read {name}: {error.strerror}", remedy="check the folder of the job"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{name} is damaged", remedy="begin anew with --force, or put it back from a copy"
        ) from None
    found: dict[str, Any] = value
    return found


@contextmanager
def open_folder(
    path: Path,
    *,
    fingerprint: Fingerprint,
    config: Mapping[str, Any],
    resume: str = "never",
    force: bool = False,
) -> Iterator[JobFolder]:
    """Begin a job in a folder, or go on with the one that is there.

    resume: "never", "always", or "if-possible", which begins anew when there is none; `force`
    begins anew whatever there is. Raises UserError if another process has it, if it was begun with
    another fingerprint, or if it cannot be written.
    """
    check_resume(path, resume, force=force)
    was_there = (path / JOB).is_file()
    try:
        _make(path)
        with owned(path):
            folder: JobFolder | None = None
            try:
                folder = _begin(path, fingerprint, config, resume, force)
                with folder.journal:
                    yield folder
            finally:
                is_done = folder is not None and not folder.is_kept
                is_mine = not was_there or (folder is not None and not folder.is_resumed)
                is_void = not was_there and folder is None  # the disk was full, or a signal came
                if is_done or is_void or (is_mine and not holds_any(path / JOURNAL)):
                    _take_away(path)
    finally:
        with suppress(OSError):  # a signal before anything was put into it
            path.rmdir()


def _make(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        why = f"cannot make the folder {path}: {error.strerror}"
        raise UserError(why, remedy="check the output's folder") from None


def _take_away(path: Path) -> None:
    """The folder goes at once, by a rename: whoever is killed before it finds all of the journal,
    and the output in place, and computes nothing again."""
    with suppress(OSError):
        with beside(path) as aside:
            os.rename(path, aside)
        return
    for name in (
        JOB,
        *BOOKS,
        *(one.name for one in logs_in(path)),
    ):  # one that cannot be renamed, as where a disk is mounted
        with suppress(OSError):
            (path / name).unlink()


def _begin(
    path: Path, fingerprint: Fingerprint, config: Mapping[str, Any], resume: str, force: bool
) -> JobFolder:
    exists = (path / JOB).is_file()
    if exists and not force:
        if resume == "never":  # somebody else's, begun while this process looked
            check_resume(path, resume, force=force)
        told = read_job(path)
        check_same(told["fingerprint"], fingerprint, path)
        told["attempts"] = int(told["attempts"]) + 1
    else:
        for one in path.iterdir():
            if _is_ours(one) and one.name not in (OWNER, "input"):
                one.unlink(missing_ok=True)
        told = {
            "form": FORM,
            "batchgen": batchgen.__version__,
            "created": now_s(),
            "attempts": 1,
            "fingerprint": fingerprint,
            "config": config,
        }
    try:
        # The journal first: a folder with job.json always has one.
        journal = Journal(path / JOURNAL)
        try:
            write_whole(path / JOB, told)
        except BaseException:
            with suppress(UserError):
                journal.__exit__(None, None, None)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}", remedy="make room, or check the folder"
        ) from None
    return JobFolder(path, journal, told, exists and not force)
