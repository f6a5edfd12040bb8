"""Who is told how a job stands: its status file, and whoever watches. Measures nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchgen.job.folder import JobFolder
from batchgen.job.snapshot import Snapshot

STATUS_S = 1.0


@dataclass(slots=True)
class Tally:
    """Rows of the input that have an answer, by all processes of the job."""

    done: int = 0
    failed: int = 0

    @property
    def answered(self) -> int:
        return self.done + self.failed

    def add(self, code: str) -> None:
        """One more row; `code` of its error, "" if it is none."""
        if code:
            self.failed += 1
        else:
            self.done += 1

    def counts(self) -> tuple[int, int]:
        return self.done, self.failed


class Board:
    """Where snapshots go: the status file, once a second at most, and whoever watches."""

    def __init__(self, folder: JobFolder, watch: Callable[[Snapshot], None] | None) -> None:
        self._folder, self._watch = folder, watch
        self._next_s = 0.0

    def show(self, snapshot: Snapshot) -> None:
        """How the job stands now."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + STATUS_S
            self._folder.status(_status("running", snapshot))
        if self._watch is not None:
            self._watch(snapshot)

    def end(self, snapshot: Snapshot, state: str) -> None:
        """How it stood in the end: the status file says so in any case."""
        self._folder.status(_status(state, snapshot))
        if self._watch is not None:
            self._watch(snapshot)


def _status(state: str, snapshot: Snapshot) -> dict[str, Any]:
    return {"state": state, "updated": round(time.time(), 3)} | snapshot.as_json()
