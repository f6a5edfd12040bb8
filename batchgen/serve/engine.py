"""The thread that runs batches, one at a time, in turns. What runs one is passed in.

A turn ends with its batch, or when others wait and its time is over, or when it is halted; what it
has achieved is in the journal of the job, from which the next turn goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from batchgen.errors import Unfinished, UserError
from batchgen.oneline import named, one_line
from batchgen.serve.objects import Batch, BatchError, Counts
from batchgen.serve.results import ANSWERS, WORK, count
from batchgen.serve.store import Store
from batchgen.serve.turns import Turns

HOLD_S = 10.0
"""Until a batch that the disk has stopped is tried again."""
MOST_MESSAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A batch to run, or to go on with: from `input` to `output`, with `folder` to keep what it has
    achieved. `anew`: whatever is there is of another job. `on_line` gets each answer, those of
    earlier turns first; `stopping` is asked before every pass, `giving_up` while the input is
    read."""

    input: Path
    output: Path
    folder: Path
    anew: bool
    on_line: Callable[[bytes], None]
    stopping: Callable[[], bool]
    giving_up: Callable[[], bool]


Run = Callable[[Task], None]
"""Returns when the output is in place. Raises Unfinished, with code "stopped" where one of the two
said so, and UserError."""


@dataclass(slots=True)
class _Turn:
    """The turn that runs."""

    name: str
    counts: Counts
    is_halted: bool = False
    began_s: float | None = None  # of the first pass: what comes before is not the batch's time
    ended_before: int = 0

    @property
    def ended(self) -> int:
        return self.counts.completed + self.counts.failed


@dataclass(slots=True)
class Engine:
    """`offer` batches that can run. `on_change` is called, in the engine's thread, when a turn is
    over; `say` prints a line."""

    store: Store
    run: Run
    turns: Turns
    on_change: Callable[[], None]
    say: Callable[[str], None]
    _turn: _Turn | None = None
    _is_stopping: bool = False
    _held: dict[str, float] = field(default_factory=dict)  # until when
    _anew: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        # A daemon: whoever cannot wait for a model that loads loses nothing.
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Let the pass that runs end. Whether all has ended in this time."""
        self.halt()
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True

    def halt(self) -> None:
        """No turn begins any more, and the one that runs ends after its pass. Takes no lock: a
        signal may come at any place."""
        self._is_stopping = True

    def offer(self, name: str) -> None:
        """A batch that is in progress; one that is known already stays as it is."""
        with self._changed:
            self.turns.add(name)
            self._changed.notify()

    def withdraw(self, name: str) -> bool:
        """No turn of this batch begins any more. Whether none runs; else that one ends soon, and
        then `on_change` is called."""
        with self._changed:
            self.turns.remove(name)
            turn = self._turn
            if turn is not None and turn.name == name:
                turn.is_halted = True
                return False
            return True

    def counts_of(self, batch: Batch) -> Counts:
        """Of this moment."""
        turn = self._turn
        if turn is None or turn.name != batch.id:
            return batch.counts
        # What earlier turns have achieved is told again when a turn begins.
        kept = batch.counts.completed + batch.counts.failed
        return turn.counts if turn.ended > kept else batch.counts

    def left_s(self) -> float | None:
        """Until the batch that runs is over, at its rate so far; None if nobody knows."""
        turn = self._turn
        if turn is None or turn.began_s is None or turn.ended <= turn.ended_before:
            return None
        each_s = (time.monotonic() - turn.began_s) / (turn.ended - turn.ended_before)
        return each_s * (turn.counts.total - turn.ended)

    # -- the thread -------------------------------------------------------------------------------

    def _loop(self) -> None:
        while (name := self._next()) is not None:
            try:
                self._one_turn(name)
            except Exception as error:  # of the disk: nothing is lost, the next turn finds it
                self._hold(name, named(error))
            finally:
                with self._changed:
                    self._turn = None
            self.on_change()

    def _next(self) -> str | None:
        """Whose turn it is, as soon as there is one; None to end."""
        with self._changed:
            while not self._is_stopping:
                now = time.monotonic()
                self._held = {name: at for name, at in self._held.items() if at > now}
                name = self.turns.next(self._held)
                if name is not None:
                    self._turn = _Turn(name, Counts())
                    return name
                self._changed.wait(0.2)  # `halt` takes no lock and so wakes nobody
            return None

    def _one_turn(self, name: str) -> None:
        batch, turn = self.store.batch(name), self._turn
        assert turn is not None
        if batch is None or batch.status != "in_progress" or batch.ending:
            self.turns.remove(name)
            return
        turn.counts.total = batch.counts.total
        folder = self.store.folder_of(batch)
        if (folder / ANSWERS).is_file() and not (folder / WORK / "job.json").is_file():
            self._ended(name)  # an earlier process has ended it, and then died
            return
        file = self.store.file(batch.input_file_id)
        if file is None:
            self._ended(name, BatchError(code="invalid_request", message="the input is gone"))
            return
        folder.mkdir(exist_ok=True)
        task = Task(
            input=self.store.path_of(file),
            output=folder / ANSWERS,
            folder=folder / WORK,
            anew=name in self._anew,
            on_line=lambda line: self._line(turn, line),
            stopping=lambda: self._stopping(turn),
            giving_up=lambda: self._is_stopping or turn.is_halted,
        )
        try:
            self.run(task)
        except Unfinished as error:
            self._paused(turn, error)
        except UserError as error:
            if error.code == "fingerprint":
                self.say(f"{name} begins anew: {one_line(error.message)}")
                self._anew.add(name)
            elif error.code == "owned":
                self._hold(name, one_line(error.message))
            else:
                self._ended(name, BatchError(code=error.code, message=one_line(error.message)))
        except Exception as error:
            self.say(f"{name} failed: internal error, a bug in batchgen: {named(error)}")
            message = f"internal error: {named(error)}"
            self._ended(name, BatchError(code="engine_error", message=message))
        else:
            self._ended(name)

    def _line(self, turn: _Turn, line: bytes) -> None:
        count(turn.counts, line)

    def _stopping(self, turn: _Turn) -> bool:
        now = time.monotonic()
        if turn.began_s is None:
            turn.began_s, turn.ended_before = now, turn.ended
        if self._is_stopping or turn.is_halted:
            return True
        return len(self.turns) > 1 and now - turn.began_s >= self.turns.length_s(turn.name)

    def _paused(self, turn: _Turn, error: Unfinished) -> None:
        """The turn is over and the batch is not."""

        def keep(batch: Batch) -> None:
            if turn.ended >= batch.counts.completed + batch.counts.failed:  # else it hardly began
                batch.counts = turn.counts

        self._anew.discard(turn.name)
        self.store.change(turn.name, keep)
        if error.code != "stopped":
            self._hold(turn.name, one_line(error.message))
            return
        used_s = time.monotonic() - (turn.began_s or time.monotonic())
        with self._changed:
            self.turns.over(turn.name, used_s, rows=turn.ended - turn.ended_before)

    def _hold(self, name: str, why: str) -> None:
        self.say(f"{name} waits {HOLD_S:g} s: {why}")
        self._held[name] = time.monotonic() + HOLD_S

    def _ended(self, name: str, error: BatchError | None = None) -> None:
        """All rows are answered, or the batch cannot go on; the clerk does the rest."""

        def end(batch: Batch) -> None:
            if batch.status != "in_progress" or batch.ending:
                return  # it is being cancelled: that is how it ends
            if error is None:
                batch.move("finalizing", int(time.time()))
            else:
                error.message = error.message[:MOST_MESSAGE]
                batch.ending, batch.errors = "failed", [*batch.errors, error]

        self.store.change(name, end)
        self._anew.discard(name)
        with self._changed:
            self.turns.remove(name)
