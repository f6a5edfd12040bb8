"""What a server keeps: files, and the records of files and batches in SQLite. It runs nothing.

    STATE/  state.sqlite  owner.json  files/FILE_ID  batches/BATCH_ID/

Names on the disk are ids that were made here. What clients say is only ever compared with records.
A file is on the disk before its record is, so one without a record is the rest of a kill.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from batchgen.errors import UserError
from batchgen.job.owner import owned
from batchgen.serve.objects import UNFINISHED, Batch, FileObject

SCHEMA = 1
NAME = "state.sqlite"
TABLES = """
CREATE TABLE files(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, expires INTEGER, record BLOB NOT NULL);
CREATE TABLE batches(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL,
    input TEXT NOT NULL, record BLOB NOT NULL);
CREATE INDEX batches_by_status ON batches(status);
"""
FILE_ID = re.compile(r"file-[0-9a-f]{24}")
BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")
INCOMING = ".incoming-"
_UNFINISHED = ",".join(f"'{one}'" for one in UNFINISHED)


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(12)}"


class Store:
    """The state of one server. All methods may be called from any thread; each is one transaction.
    They raise sqlite3.Error or OSError for what the disk refuses."""

    def __init__(self, folder: Path, base: sqlite3.Connection) -> None:
        self._folder, self._base = folder, base
        self._lock = threading.RLock()

    # -- files ------------------------------------------------------------------------------------

    def incoming(self) -> Path:
        """A new name for a file that is being written; `add_file` gives it its own."""
        return self._folder / "files" / f"{INCOMING}{secrets.token_hex(12)}"

    def path_of(self, file: FileObject) -> Path:
        return self._folder / "files" / file.id

    def folder_of(self, batch: Batch) -> Path:
        """Where a batch keeps what it works with."""
        return self._folder / "batches" / batch.id

    def add_file(self, written: Path, file: FileObject) -> None:
        """A file whose bytes lie, durably, at `written`."""
        with self._lock, self._base:
            self._add_file(written, file)

    def _add_file(self, written: Path, file: FileObject) -> None:
        written.replace(self.path_of(file))
        folder = os.open(self._folder / "files", os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._base.execute(
            "INSERT INTO files(id, purpose, bytes, expires, record) VALUES(?, ?, ?, ?, ?)",
            (file.id, file.purpose, file.bytes, file.expires_at, msgspec.json.encode(file)),
        )

    def file(self, file_id: str) -> FileObject | None:
        found = self._record("files", file_id) if FILE_ID.fullmatch(file_id) else None
        return None if found is None else msgspec.json.decode(found, type=FileObject)

    def files(
        self, *, after: str | None, limit: int, ascending: bool, purpose: str | None
    ) -> tuple[list[FileObject], bool] | None:
        """A page, and whether there are more; None if nothing is called `after`."""
        found = self._page("files", after, limit, ascending, purpose)
        if found is None:
            return None
        return [msgspec.json.decode(one, type=FileObject) for one in found[0]], found[1]

    def is_used(self, file_id: str) -> bool:
        """Whether an unfinished batch reads the file."""
        query = f"SELECT 1 FROM batches WHERE input = ? AND status IN ({_UNFINISHED})"
        return self._one(query, file_id) is not None

    def remove_file(self, file: FileObject) -> bool:
        """Whether it was there, and no unfinished batch reads it; then it is gone."""
        with self._lock, self._base:
            if self.is_used(file.id):
                return False
            gone = self._base.execute("DELETE FROM files WHERE id = ?", (file.id,)).rowcount
        if gone:
            self.path_of(file).unlink(missing_ok=True)
        return bool(gone)

    def stored_bytes(self) -> int:
        found = self._one("SELECT COALESCE(SUM(bytes), 0) FROM files")
        return int(found[0]) if found else 0

    def expired_files(self, now_s: int) -> list[FileObject]:
        with self._lock:
            rows = self._base.execute(
                "SELECT record FROM files WHERE expires <= ?", (now_s,)
            ).fetchall()
        return [msgspec.json.decode(record, type=FileObject) for (record,) in rows]

    # -- batches ----------------------------------------------------------------------------------

    def add_batch(self, batch: Batch, *, most: int) -> bool:
        """Whether fewer than `most` batches were unfinished, and its input is there; then it is
        kept."""
        with self._lock, self._base:
            if self.num_unfinished() >= most or self.file(batch.input_file_id) is None:
                return False
            self._base.execute(
                "INSERT INTO batches(id, status, input, record) VALUES(?, ?, ?, ?)",
                (batch.id, batch.status, batch.input_file_id, msgspec.json.encode(batch)),
            )
            return True

    def batch(self, batch_id: str) -> Batch | None:
        found = self._record("batches", batch_id) if BATCH_ID.fullmatch(batch_id) else None
        return None if found is None else msgspec.json.decode(found, type=Batch)

    def batches(self, *, after: str | None, limit: int) -> tuple[list[Batch], bool] | None:
        """A page, the newest first, and whether there are more; None if nothing is called
        `after`."""
        found = self._page("batches", after, limit, False, None)
        if found is None:
            return None
        return [msgspec.json.decode(one, type=Batch) for one in found[0]], found[1]

    def unfinished(self) -> list[Batch]:
        """In the order in which they came."""
        with self._lock:
            rows = self._base.execute(
                f"SELECT record FROM batches WHERE status IN ({_UNFINISHED}) ORDER BY seq"
            ).fetchall()
        return [msgspec.json.decode(record, type=Batch) for (record,) in rows]

    def num_unfinished(self) -> int:
        found = self._one(f"SELECT COUNT(*) FROM batches WHERE status IN ({_UNFINISHED})")
        return int(found[0]) if found else 0

    def change(
        self,
        batch_id: str,
        how: Callable[[Batch], None],
        files: Sequence[tuple[Path, FileObject]] = (),
    ) -> Batch:
        """The batch as `how` makes it, kept together with the records of new files. What `how`
        raises changes nothing."""
        with self._lock, self._base:
            batch = self.batch(batch_id)
            if batch is None:
                raise KeyError(batch_id)
            how(batch)
            for written, file in files:
                self._add_file(written, file)
            self._base.execute(
                "UPDATE batches SET status = ?, record = ? WHERE id = ?",
                (batch.status, msgspec.json.encode(batch), batch_id),
            )
            return batch

    # -- SQL --------------------------------------------------------------------------------------

    def _record(self, table: str, name: str) -> bytes | None:
        found = self._one(f"SELECT record FROM {table} WHERE id = ?", name)
        return None if found is None else bytes(found[0])

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with self._lock:
            found: tuple[Any, ...] | None = self._base.execute(query, values).fetchone()
            return found

    def _page(
        self, table: str, after: str | None, limit: int, ascending: bool, purpose: str | None
    ) -> tuple[list[bytes], bool] | None:
        with self._lock:
            conditions, values = [], list[object]()
            if after is not None:
                found = self._one(f"SELECT seq FROM {table} WHERE id = ?", after)
                if found is None:
                    return None
                conditions.append(f"seq {'>' if ascending else '<'} ?")
                values.append(found[0])
            if purpose is not None:
                conditions.append("purpose = ?")
                values.append(purpose)
            where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
            order = "ASC" if ascending else "DESC"
            rows = self._base.execute(
                f"SELECT record FROM {table} {where}ORDER BY seq {order} LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
        return [bytes(record) for (record,) in rows[:limit]], len(rows) > limit


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The state in a folder, made if there is none. Raises UserError if another server has it, or
    if it cannot be read or written."""
    _check_folder(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("files", "batches"):
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}", remedy="give another --state"
        ) from None
    with _owned(folder):
        base = _connect(folder / NAME)
        try:
            store = Store(folder, base)
            _tidy(store, folder)
            yield store
        finally:
            base.close()


def _check_folder(folder: Path) -> None:
    """Raises UserError for a folder that holds what is not ours."""
    try:
        names = {one.name for one in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"cannot read the folder {folder}: {error.strerror}", remedy="give another --state"
        ) from None
    if names and NAME not in names and not names <= {"files", "batches", "owner.json"}:
        raise UserError(
            f"{folder} is not the state of a server (no {NAME})", remedy="give an empty --state"
        )


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    try:
        owner = owned(folder)
        owner.__enter__()
    except UserError as error:
        if error.code != "owned":
            raise
        raise UserError(
            error.message.replace("the job", "the server", 1),
            remedy="stop it, or give another --state",
            code="owned",
        ) from None
    try:
        yield
    finally:
        owner.__exit__(None, None, None)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        base = sqlite3.connect(path, timeout=30, check_same_thread=False)
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA synchronous=FULL")
        (schema,) = base.execute("PRAGMA user_version").fetchone()
        if schema not in (0, SCHEMA):
            raise UserError(
                f"{path} has form {schema}, this version reads {SCHEMA}",
                remedy="serve it with the version that made it, or give another --state",
            )
        if not schema:
            base.executescript(f"BEGIN; {TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")
        return base
    except sqlite3.Error as error:
        raise UserError(
            f"cannot open {path}: {error!s:.200}", remedy="give another --state, or free some disk"
        ) from None


def _tidy(store: Store, folder: Path) -> None:
    """Take away what a kill left: files without a record, folders of batches that ended."""
    with suppress(OSError):
        for path in (folder / "files").iterdir():
            name = path.name
            known = FILE_ID.fullmatch(name) and store.file(name) is not None
            if name.startswith(INCOMING) or (FILE_ID.fullmatch(name) and not known):
                path.unlink(missing_ok=True)
        for path in (folder / "batches").iterdir():
            batch = store.batch(path.name) if BATCH_ID.fullmatch(path.name) else None
            if BATCH_ID.fullmatch(path.name) and (batch is None or batch.is_finished):
                shutil.rmtree(path, ignore_errors=True)
