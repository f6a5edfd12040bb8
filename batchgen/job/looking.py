"""A job seen from outside: by its folder while it runs or can go on, by its output when it is done.
It reads and changes nothing, and stands in nobody's way."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.errors import UserError
from batchgen.job.folder import JOB, JOURNAL, STATUS, check_files, default_folder, read_job
from batchgen.job.journal import read_coded_lines, read_counts
from batchgen.job.owner import owner_of
from batchgen.job.snapshot import Snapshot, snapshot_of
from batchgen.paths import check_input, kind_of

MOST_STATUS_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """state: "running" (a process, `owner`, has it), "stopped" (it ended in good order), "killed",
    or "done". `rows` None: nobody has read the whole input yet. by_code: answers, "" without an
    error. age_s: of the snapshot."""

    where: Path
    state: str
    owner: str
    rows: int | None
    by_code: Mapping[str, int]
    attempts: int | None
    created: int | None
    snapshot: Snapshot | None
    age_s: float | None

    @property
    def done(self) -> int:
        return self.by_code.get("", 0)

    @property
    def failed(self) -> int:
        return sum(self.by_code.values()) - self.done


def folder_of(where: Path) -> Path | None:
    """The folder of a job that is not done: `where`, or the one beside the output `where`. None if
    an output is there and no job. Raises UserError if nothing is."""
    if kind_of(where) == "folder":
        if not (where / JOB).is_file():
            raise UserError(
                f"{where} is not the folder of a job (no {JOB})",
                remedy="name the output, or OUTPUT.job",
            )
        check_files(where)
        return where
    beside = default_folder(where)
    if (beside / JOB).is_file():
        check_files(beside)
        return beside
    if not kind_of(where):
        raise UserError(
            f"no job is in {beside}, and there is no output {where}",
            remedy="name the output or the --job-dir of a job",
        )
    check_input("output", where, remedy="name the output or the folder of a job")
    return None


def look_at(where: Path) -> Standing:
    """How a job stands. Raises UserError for what is none."""
    folder = folder_of(where)
    if folder is None:
        by_code: dict[str, int] = {}
        for _, code in _output_lines(where):
            by_code[code] = by_code.get(code, 0) + 1
        return Standing(
            where=where,
            state="done",
            owner="",
            rows=sum(by_code.values()),
            by_code=dict(sorted(by_code.items())),
            attempts=None,
            created=None,
            snapshot=None,
            age_s=None,
        )
    owner = owner_of(folder)
    try:
        told = read_job(folder)
        counts = read_counts(folder / JOURNAL)
    except UserError:
        if folder_of(where) is None:  # it has just ended
            return look_at(where)
        raise
    status = _status(folder / STATUS)
    snapshot, state = None, "killed"
    if status is not None:
        snapshot = snapshot_of(status)
        state = "stopped" if status["state"] == "stopped" else "killed"
    rows = int(told.get("rows", -1))
    return Standing(
        where=folder,
        state="running" if owner is not None else state,
        owner=owner or "",
        rows=rows if rows >= 0 else None,
        by_code=counts,
        attempts=int(told["attempts"]),
        created=int(told["created"]),
        snapshot=snapshot,
        age_s=None if status is None else max(time.time() - float(status["updated"]), 0.0),
    )


def lines_of(where: Path, order: str) -> Iterator[tuple[bytes, str]]:
    """(output line, code of its error or "") of all rows that have an answer. An output that is
    done is in the order in which it was written. Raises UserError."""
    folder = folder_of(where)
    if folder is None:
        yield from _output_lines(where)
    else:
        yield from read_coded_lines(folder / JOURNAL, order)


def _output_lines(path: Path) -> Iterator[tuple[bytes, str]]:
    number = 0
    try:
        with path.open("rb") as file:
            for line in file:
                number += 1
                error = json.loads(line)["error"]
                yield line.removesuffix(b"\n"), "" if error is None else str(error["code"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", remedy="check it") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path} is not the output of a job, or Parquet (line {number} is no answer)",
            remedy="name an output of JSON lines",
        ) from None


def _status(path: Path) -> dict[str, Any] | None:
    """What the status file says; None without one that can be read."""
    try:
        with path.open("rb") as file:
            value: dict[str, Any] = json.loads(file.read(MOST_STATUS_BYTES))
        snapshot_of(value)
        str(value["state"]), float(value["updated"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return value
