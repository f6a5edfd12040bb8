"""Processes that make the chunks of an input, one for each thread that asks at once. A chunk that a
process does not bring back is made here: nobody sees a difference but the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from types import TracebackType
from typing import Self

from batchgen.job.encoding import Chunk, Encoded, Maker
from batchgen.job.wire import pack_chunk, read_message, setup_of, unpack_encoded, write_message

START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from batchgen.job.crew_worker import main; main()"
)
MOST_LOST = 3
"""Processes that may end before their time; then none is started any more."""

PATIENCE_S = 1.0
"""For a process that has nothing to do, to end by itself."""


class Closed(Exception):
    """Whoever wanted this chunk does not any more."""


class Crew:
    """Starts a process when a thread asks and none is idle; `close` ends all, whatever they do.

    Processes are fresh interpreters, without torch, that hear no Ctrl-C and end with this one. What
    they need goes over a pipe; an encoder without a `recipe` makes all here.
    """

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._setup: bytes | None = None
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []
        self._num_lost = 0
        self._is_closed = False
        self._lock = Lock()

    def encoded(self, chunk: Chunk) -> Encoded:
        """As `Maker.encoded`. Raises Closed when another thread closes the crew meanwhile."""
        process = self._take()
        found = None
        if process is not None:
            try:
                found = process.ask(chunk)
            finally:
                self._give_back(process)
        if self._is_closed:
            raise Closed
        return self._maker.encoded(chunk) if found is None else found

    def _take(self) -> _Process | None:
        """An idle process or a new one; None if there are none to be had."""
        with self._lock:
            if self._is_closed:
                raise Closed
            if self._num_lost >= MOST_LOST:
                return None
            if not self._idle:
                setup = self._made_setup()
                try:
                    process = None if setup is None else _Process(setup)
                except OSError:  # no more than the system allows
                    process = None
                if process is None:
                    self._num_lost = MOST_LOST
                    return None
                self._idle.append(process)
            process = self._idle.pop()
            self._busy.append(process)
            return process

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if self._is_closed:  # then `close` has ended it
                return
            self._busy.remove(process)
            if process.is_lost:
                self._num_lost += 1
                process.end()
            else:
                self._idle.append(process)

    def _made_setup(self) -> bytes | None:
        if self._setup is None:
            self._setup = setup_of(self._maker)
        return self._setup

    def close(self) -> None:
        """End all processes, for good."""
        with self._lock:
            self._is_closed = True
            for process in self._idle:
                process.leave()
            for process in self._busy:
                process.end()
            for process in self._idle:
                process.end(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Process:
    """One process, for one thread at a time."""

    def __init__(self, setup: bytes) -> None:
        path = json.dumps([os.path.abspath(folder) for folder in sys.path])
        self._setup: bytes | None = setup
        self.is_lost = False
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is answered here
            # Its one thread is what the core has to do.
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )

    def ask(self, chunk: Chunk) -> Encoded | None:
        """What it makes of a chunk. None: it does not want to, or has ended and `is_lost`."""
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        try:
            request = pack_chunk(chunk)
        except (OverflowError, RecursionError, TypeError, ValueError):  # has no place in msgpack
            return None
        try:
            if self._setup is not None:
                write_message(requests, self._setup)
                self._setup = None
            write_message(requests, request)
            reply = read_message(replies)
        except (OSError, ValueError):  # ValueError: its pipes are closed
            reply = None
        if reply is None:
            self.is_lost = True
            return None
        return unpack_encoded(reply) if reply else None

    def leave(self) -> None:
        """Tell one that is idle that no more will come, so that it ends what it has started."""
        assert self._process.stdin is not None
        with suppress(OSError):  # closing writes what it did not take
            self._process.stdin.close()

    def end(self, patience_s: float = 0.0) -> None:
        """Now, or so long after `leave`. A thread that waits for it goes on."""
        self.is_lost = True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self._process.kill()
        self._process.wait()
        self.leave()
        assert self._process.stdout is not None
        self._process.stdout.close()
