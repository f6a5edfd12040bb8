"""The thread that does everything for batches but run them: checks their lines, ends those whose
time is over or that are cancelled, writes their files.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from batchgen.errors import UserError
from batchgen.oneline import named, one_line
from batchgen.serve.engine import Engine
from batchgen.serve.limits import Limits
from batchgen.serve.lines import Checked, NoMore, check_lines
from batchgen.serve.objects import Batch, BatchError, FileObject
from batchgen.serve.results import Written, answers_of, write_results
from batchgen.serve.store import Store, new_file_id

LOOK_S = 60.0
"""At most so long between two looks; files whose time is over go by then."""
AGAIN_S = 5.0
ENDINGS = {"cancelling": "cancelled", "finalizing": "completed"}
UNANSWERED = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was answered"),
    "expired": ("batch_expired", "the completion window ended before this request was answered"),
    "failed": ("engine_error", "the batch failed before this request was answered"),
    "completed": ("engine_error", "the request has no answer"),
}


@dataclass(slots=True)
class Clerk:
    """`models`: names under which the model is known. `wake` it when something has changed."""

    store: Store
    engine: Engine
    limits: Limits
    models: Collection[str]
    say: Callable[[str], None]
    _is_stopping: bool = False
    _woken: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="clerk", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """What it is at stays undone: the next process does it."""
        self._is_stopping = True
        self.wake()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def wake(self) -> None:
        self._woken.set()

    def _loop(self) -> None:
        while not self._is_stopping:
            self._woken.clear()
            try:
                wait_s = self._round()
            except (sqlite3.Error, OSError) as error:
                wait_s = self._wait("the state", error)
            if not self._is_stopping:
                self._woken.wait(wait_s)

    def _round(self) -> float:
        """Looks at everything once; seconds until something may have changed by itself."""
        for file in self.store.expired_files(int(time.time())):
            self.store.remove_file(file)
        soonest = time.time() + LOOK_S
        for batch in self.store.unfinished():
            if self._is_stopping:
                break
            soonest = min(soonest, batch.expires_at)
            try:
                self._look_at(batch)
            except NoMore:
                break
            except Exception as error:  # the others go on; this one is looked at again
                soonest = min(soonest, time.time() + self._wait(batch.id, error))
        return max(0.05, soonest - time.time())

    def _wait(self, what: str, error: Exception) -> float:
        self.say(f"{what} waits {AGAIN_S:g} s: {named(error)}")
        return AGAIN_S

    def _look_at(self, batch: Batch) -> None:
        if batch.status in ("validating", "in_progress") and not batch.ending:
            if time.time() >= batch.expires_at:
                batch = self.store.change(batch.id, _expire)
            elif batch.status == "validating":
                batch = self._check(batch)
        if batch.ending or batch.status in ENDINGS:
            if self.engine.withdraw(batch.id):
                self._settle(batch)
        elif batch.status == "in_progress":
            self.engine.offer(batch.id)

    def _check(self, batch: Batch) -> Batch:
        """All lines are good, and it can run; or it fails."""
        file = self.store.file(batch.input_file_id)
        try:
            if file is None:
                raise UserError("the input is gone")
            checked = check_lines(
                self.store.path_of(file),
                endpoint=batch.endpoint,
                models=self.models,
                most_rows=self.limits.rows,
                stopping=lambda: self._is_stopping,
            )
        except UserError as error:
            wrong = BatchError(code="invalid_request", message=one_line(error.message))
            checked = Checked(rows=0, model=None, errors=[wrong])

        def decide(batch: Batch) -> None:
            if batch.status != "validating":
                return  # cancelled meanwhile
            batch.errors = checked.errors
            if not checked.errors:
                batch.model, batch.counts.total = checked.model, checked.rows
            batch.move("failed" if checked.errors else "in_progress", int(time.time()))

        return self.store.change(batch.id, decide)

    def _settle(self, batch: Batch) -> None:
        """Its files, and its last state, at once."""
        ending = batch.ending or ENDINGS[batch.status]
        good, bad = self.store.incoming(), self.store.incoming()
        try:
            written = self._write(batch, ending, good, bad)
            files = [
                (path, _file(batch, name, num_bytes))
                for path, name, num_bytes in (
                    (good, "output", written.good_bytes),
                    (bad, "error", written.bad_bytes),
                )
                if num_bytes
            ]

            def end(batch: Batch) -> None:
                batch.move(ending, int(time.time()))
                batch.ending, batch.counts = "", written.counts
                for path, file in files:
                    if path == good:
                        batch.output_file_id = file.id
                    else:
                        batch.error_file_id = file.id

            self.store.change(batch.id, end, files)
        finally:
            good.unlink(missing_ok=True)
            bad.unlink(missing_ok=True)
        shutil.rmtree(self.store.folder_of(batch), ignore_errors=True)

    def _write(self, batch: Batch, ending: str, good: Path, bad: Path) -> Written:
        file = self.store.file(batch.input_file_id)
        rows = Path() if file is None else self.store.path_of(file)
        code, message = UNANSWERED[ending]
        total = batch.counts.total if file is not None else 0
        answers = answers_of(self.store.folder_of(batch))
        try:
            return write_results(answers, rows, total, good, bad, code=code, message=message)
        except UserError as error:  # its journal is damaged
            self.say(f"{batch.id}: {one_line(error.message)}")
            return write_results((), rows, total, good, bad, code="engine_error", message=message)


def _expire(batch: Batch) -> None:
    if batch.status in ("validating", "in_progress") and not batch.ending:
        batch.ending = "expired"


def _file(batch: Batch, name: str, num_bytes: int) -> FileObject:
    now_s, stays_s = int(time.time()), batch.output_expires_s
    return FileObject(
        id=new_file_id(),
        bytes=num_bytes,
        created_at=now_s,
        filename=f"{batch.id}_{name}.jsonl",
        purpose="batch_output",
        expires_at=None if stays_s is None else now_s + stays_s,
    )
