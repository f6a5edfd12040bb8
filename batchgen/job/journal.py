"""What a job has achieved, durably: answers of rows and tokens of unfinished ones, in SQLite.

One thread writes, in groups: what is given here is on the disk at most `commit_s` later (WAL with
full sync), so a process that is killed loses no more than that, and never half a record. Readers of
other processes see every committed answer while the job runs. Nothing here knows what an answer is.

A WAL must not lie on a network file system (SQLite's own rule): there SQLite keeps another mode,
which is as durable and slower.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from batchgen.errors import Unfinished, UserError
from batchgen.oneline import named

Ints = npt.NDArray[np.int32]

SCHEMA = 1
COMMIT_S = 0.2
ORDERS = {"input": "row", "completion": "ended"}
"""Of answers, and the column that each is by."""
MOST_WAITING = 20_000
"""Records that may wait for the disk; beyond that whoever brings more waits too."""

TABLES = """
CREATE TABLE IF NOT EXISTS answers(
    row INTEGER PRIMARY KEY, code TEXT NOT NULL, line BLOB NOT NULL, ended INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tokens(
    row INTEGER NOT NULL, sample INTEGER NOT NULL, begin INTEGER NOT NULL, ids BLOB NOT NULL,
    PRIMARY KEY(row, sample, begin)) WITHOUT ROWID;
"""
TOKENS = "INSERT INTO tokens(row, sample, begin, ids) VALUES", "(?, ?, ?, ?)", ""
ANSWER = "INSERT INTO answers(row, code, line, ended) VALUES", "(?, ?, ?, ?)", ""
OVER = "DELETE FROM tokens WHERE row IN (", "?", ")"
Statement = tuple[str, str, str]
"""What comes before, for each record, and after."""
Record = tuple[Statement, tuple[object, ...]]
ORDER = (TOKENS, ANSWER, OVER)
"""Of the records of a group: the tokens of a row that has ended go in any case."""
TOGETHER = 128
"""Records of one statement. SQLite lets go of Python's lock at each, and a busy thread hands it
back 5 ms later: one by one, 1,000 rows a second could not be written while others compute."""


def _open(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection; raises UserError for what is no journal of this version."""
    try:
        if read_only:
            # Not immutable: a job may be writing.
            uri = f"{path.resolve().as_uri()}?mode=ro"
            base = sqlite3.connect(uri, uri=True, timeout=30, isolation_level=None)
        else:
            base = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=FULL")
        (schema,) = base.execute("PRAGMA user_version").fetchone()
        if schema not in (0, SCHEMA):
            raise UserError(
                f"{path} is a journal of form {schema}, this version reads {SCHEMA}",
                remedy="go on with the version that began the job, or begin anew with --force",
            )
        if not read_only and not schema:
            base.executescript(f"BEGIN; {TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")
        return base
    except sqlite3.Error as error:
        raise UserError(
            f"cannot open the journal {path}: {error!s:.200}",
            remedy="if it is damaged, begin anew with --force",
        ) from None


class Journal:
    """The journal of a job that runs; one at a time (`batchgen.job.owner`).

    `answer` and `tokens` return at once. Whatever the disk refuses is raised as Unfinished by the
    next call, `sync` or the end of the context: what was committed before stays good.
    """

    def __init__(self, path: Path, *, commit_s: float = COMMIT_S) -> None:
        self.path = Path(path)
        self._base = _open(self.path)
        self._commit_s = commit_s
        self._waiting: queue.Queue[Record | threading.Event | None] = queue.Queue(MOST_WAITING)
        self._hurry = threading.Event()  # something waits for the disk
        self._ended = int(self._one("SELECT COALESCE(MAX(ended), -1) FROM answers")) + 1
        self._refused = ""
        self.commits = 0
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._waiting.put(None)
        self._hurry.set()
        self._thread.join()
        self._base.close()
        if kind is None:
            self._check()

    # -- writing ----------------------------------------------------------------------------------

    def answer(self, row: int, line: bytes, code: str = "") -> None:
        """The output line of a row, without its newline; `code` of an error, "" if it is none. Each
        row once; its tokens are dropped."""
        self._put(ANSWER, (row, code, line, self._ended))
        self._put(OVER, (row,))
        self._ended += 1

    def tokens(self, row: int, sample: int, begin: int, ids: Ints) -> None:
        """Tokens [begin, begin + len(ids)) that a sample of an unfinished row has produced."""
        self._put(TOKENS, (row, sample, begin, ids.astype("<i4").tobytes()))

    def sync(self) -> None:
        """Returns when all that was given before is on the disk."""
        done = threading.Event()
        self._waiting.put(done)
        self._hurry.set()
        done.wait()
        self._check()

    def _put(self, statement: Statement, values: tuple[object, ...]) -> None:
        self._check()
        self._waiting.put((statement, values))
        if self._waiting.qsize() > MOST_WAITING // 2:
            self._hurry.set()

    def _check(self) -> None:
        if self._refused:
            raise Unfinished(
                f"cannot write the journal {self.path}: {self._refused}",
                remedy="make room, then go on with --resume always",
            )

    def _write(self) -> None:
        """The thread: what has come meanwhile is committed together. It sleeps while that comes: to
        be woken by each record would disturb whoever brings them."""
        is_open = True
        while is_open:
            first = self._waiting.get()
            self._hurry.wait(self._commit_s)
            self._hurry.clear()
            # What comes from now on is for the next group.
            items = [first, *(self._waiting.get() for _ in range(self._waiting.qsize()))]
            is_open = None not in items
            self._commit([item for item in items if isinstance(item, tuple)])
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _commit(self, group: Sequence[Record]) -> None:
        if not group or self._refused:
            return
        try:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                for statement in ORDER:
                    self._execute(statement, [some for one, some in group if one is statement])
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
            self.commits += 1
        except Exception as error:
            # Any: an error that ended this thread would make the others wait for ever.
            self._refused = str(error) if isinstance(error, sqlite3.Error) else named(error)

    def _execute(self, statement: Statement, records: Sequence[tuple[object, ...]]) -> None:
        """Many records at a time; the sizes are few, so that SQLite knows their statements."""
        begin, size = 0, TOGETHER
        head, each, tail = statement
        while begin < len(records):
            while size > len(records) - begin:
                size //= 2
            some = records[begin : begin + size]
            text = f"{head}{', '.join([each] * size)}{tail}"
            self._base.execute(text, [value for values in some for value in values])
            begin += size

    # -- what an earlier run left -----------------------------------------------------------------

    def answered(self) -> npt.NDArray[np.bool_]:
        """Which rows have an answer, up to the last that has."""
        found = np.zeros(self._one("SELECT COALESCE(MAX(row), -1) FROM answers") + 1, np.bool_)
        for (row,) in self._base.execute("SELECT row FROM answers"):
            found[row] = True
        return found

    def failed(self) -> npt.NDArray[np.bool_]:
        """Which rows have an error for an answer, up to the last that has one."""
        found = np.zeros(self._one("SELECT COALESCE(MAX(row), -1) FROM answers") + 1, np.bool_)
        for (row,) in self._base.execute("SELECT row FROM answers WHERE code <> ''"):
            found[row] = True
        return found

    def num_answers(self) -> int:
        return self._one("SELECT COUNT(*) FROM answers")

    def produced(self) -> dict[tuple[int, int], Ints]:
        """(row, sample) -> the tokens that it had produced, of rows without an answer. What does
        not follow from its beginning on is left out."""
        found: dict[tuple[int, int], list[Ints]] = {}
        sizes: dict[tuple[int, int], int] = {}
        for row, sample, begin, blob in self._base.execute(
            "SELECT row, sample, begin, ids FROM tokens ORDER BY row, sample, begin"
        ):
            ids = np.frombuffer(blob, dtype="<i4").astype(np.int32)
            if sizes.get((row, sample), 0) == begin:
                found.setdefault((row, sample), []).append(ids)
                sizes[row, sample] = begin + len(ids)
        return {one: np.concatenate(parts) for one, parts in found.items()}

    def counts(self) -> dict[str, int]:
        """How many answers there are by code; "" are those without an error."""
        return counts(self._base)

    def lines(self, order: str = "input") -> Iterator[bytes]:
        """All answers, in input order or in the order of their completion."""
        yield from lines(self._base, order)

    def _one(self, query: str) -> int:
        (value,) = self._base.execute(query).fetchone()
        return int(value)


def counts(base: sqlite3.Connection) -> dict[str, int]:
    """Answers by code."""
    return dict(base.execute("SELECT code, COUNT(*) FROM answers GROUP BY code ORDER BY code"))


def lines(base: sqlite3.Connection, order: str) -> Iterator[bytes]:
    """Lines without their newline."""
    for line, _ in coded_lines(base, order):
        yield line


def coded_lines(base: sqlite3.Connection, order: str) -> Iterator[tuple[bytes, str]]:
    """(line without its newline, code of its error or "")."""
    by = ORDERS[order]
    with closing(base.execute(f"SELECT line, code FROM answers ORDER BY {by}")) as found:
        for line, code in found:
            yield bytes(line), code


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """A journal that another process may be writing; None if it has no tables yet. Raises
    UserError."""
    with closing(_open(path, read_only=True)) as base:
        try:
            (schema,) = base.execute("PRAGMA user_version").fetchone()
            yield base if schema else None
        except sqlite3.Error as error:
            raise UserError(
                f"cannot read the journal {path}: {error!s:.200}", remedy="check the folder"
            ) from None


def read_lines(path: Path, order: str = "input") -> Iterator[bytes]:
    """The answers of a job so far, while it runs or after it stopped. Raises UserError."""
    with _reading(path) as base:
        if base is not None:
            yield from lines(base, order)


def read_coded_lines(path: Path, order: str = "input") -> Iterator[tuple[bytes, str]]:
    """The same with the code of each error, "" where there is none. Raises UserError."""
    with _reading(path) as base:
        if base is not None:
            yield from coded_lines(base, order)


def read_counts(path: Path) -> dict[str, int]:
    """Answers of a job so far by code. Raises UserError."""
    with _reading(path) as base:
        return {} if base is None else counts(base)


def holds_any(path: Path) -> bool:
    """Whether a journal holds an answer or a token; True for one that cannot be read."""
    if not path.exists():
        return False
    try:
        with _reading(path) as base:
            if base is None:
                return False
            found = base.execute(
                "SELECT EXISTS(SELECT 1 FROM answers) OR EXISTS(SELECT 1 FROM tokens)"
            ).fetchone()
            return bool(found[0])
    except UserError:
        return True
