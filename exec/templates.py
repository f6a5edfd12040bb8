"""Chat templates, rendered in a process of their own. Knows no tokens.

The process has limits of time, memory and output (`exec.template_worker`). One that breaks them
ends; the conversation at which it did is refused, and a fresh process takes the next.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from batchgen.errors import UserError
from batchgen.exec.template_wire import (
    HEADER_BYTES,
    MEMORY_BYTES,
    MEMORY_EXIT,
    Refusal,
    unpack_replies,
)

CPU_S = 2.0  # a template of a real checkpoint takes less than a millisecond for a usual prompt
# A backstop for a process that gets no processor: a template meets `cpu_s` first.
WALL_S = 120.0
START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from batchgen.exec.template_worker import main; main()"
)


PIECE_BYTES = 1 << 20


class Cancelled(Exception):
    """Whoever wanted these texts does not any more."""


class TemplateError(ValueError):
    """The chat template did not take these messages; the text is the template's own, or says which
    limit it met."""


def time_of_job() -> datetime:
    """What `strftime_now` prints in a whole job: now, or SOURCE_DATE_EPOCH (seconds, then in UTC)
    for prompts that do not depend on the day. Without a time zone, as checkpoints expect."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdecimal() and len(given) <= 11:
        return datetime.fromtimestamp(int(given), UTC).replace(tzinfo=None)
    return datetime.now()


class ChatTemplate:
    """One template with the variables that all conversations share.

    `cpu_s`: processor time for one conversation. Raises ValueError for a text that is no template,
    unless it is known to be one (is_checked); it is not run before `render`.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        now: datetime,
        *,
        cpu_s: float = CPU_S,
        is_checked: bool = False,
    ) -> None:
        if not is_checked:
            _check(source, now)
        self._cpu_s = cpu_s
        self._job = {
            "source": source,
            "variables": dict(variables),
            "now": now.isoformat(),
            "cpu_s": cpu_s,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._broken = ""  # why no conversation can be rendered
        self._ended_with = 0  # exit code of a process that has ended before it should
        self._is_cancelled = False
        self._read_ahead = bytearray()  # of messages
        self._replies: deque[str] = deque()  # of a message

    def render(self, conversations: Sequence[list[dict[str, Any]]]) -> list[str | TemplateError]:
        """The text of each conversation, or what is wrong with it. Raises Cancelled."""
        try:
            texts = self._rendered_at_once(conversations)
            texts += [self._rendered(one) for one in conversations[len(texts) :]]
        except BaseException:  # a signal: what is on its way belongs to nobody
            self.close()
            raise
        return texts

    def _rendered_at_once(
        self, conversations: Sequence[list[dict[str, Any]]]
    ) -> list[str | TemplateError]:
        """The texts up to the first at which the process may have ended: it may have kept some."""
        texts: list[str | TemplateError] = []
        if len(conversations) < 2:
            return texts
        try:
            request = _packed(conversations)
        except RecursionError:
            return texts
        if not self._is_ready():
            return texts
        self._send(request)
        for _ in conversations:
            text = self._answer()
            if self._process is None:
                break
            texts.append(text)
        return texts

    def _rendered(self, messages: list[dict[str, Any]]) -> str | TemplateError:
        """The text of one conversation."""
        try:
            request = _packed([messages])
        except RecursionError:
            return TemplateError("the messages are nested too deep")
        if not self._is_ready():
            return TemplateError(self._broken)
        self._send(request)
        return self._answer()

    def _is_ready(self) -> bool:
        """Whether there is a process; `_broken` says why there is none."""
        if self._process is None and not self._broken:
            self._start()
        return not self._broken

    def _answer(self) -> str | TemplateError:
        answer = self._receive()
        if self._is_cancelled:
            raise Cancelled
        return answer

    def close(self) -> None:
        """End the process, if there is one; the next `render` starts another."""
        if self._process is not None:
            self._process = None
            self._end()

    def cancel(self) -> None:
        """End a `render` of another thread soon, for good."""
        self._is_cancelled = True
        process = self._process
        if process is not None:
            process.kill()

    def _start(self) -> None:
        """A process that has compiled the template; `_broken` if it could not. One that is killed
        meanwhile, as where memory is short, is no fault of the template's: once more."""
        for _ in range(2):
            answer = self._begin()
            if self._is_cancelled:
                self.close()
                raise Cancelled
            if not isinstance(answer, TemplateError):
                return
            self.close()
            if self._ended_with != -signal.SIGKILL:
                break
        self._broken = str(answer)

    def _begin(self) -> str | TemplateError:
        """What a new process says of the template."""
        self._ended_with = 0
        path = json.dumps([os.path.abspath(folder) for folder in sys.path])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", START, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is answered here
            )
        except OSError as error:
            raise UserError(
                f"no process can be started for the chat template: {error.strerror}",
                remedy="free memory or processes, or send prompts instead of messages",
            ) from None
        self._end = weakref.finalize(self, _end, self._process)
        self._read_ahead = bytearray()
        self._replies.clear()
        self._send(json.dumps(self._job).encode())
        return self._receive()

    def _send(self, request: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended, and the next reply will say so
            self._process.stdin.write(request + b"\n")
            self._process.stdin.flush()

    def _receive(self) -> str | TemplateError:
        """The next reply. If none comes, why; then the process is over."""
        if not self._replies and not self._next_message():
            return TemplateError(f"chat template: {self._why_it_ended()}")
        reply = self._replies.popleft()
        return TemplateError(f"chat template: {reply}") if isinstance(reply, Refusal) else reply

    def _next_message(self) -> bool:
        """Take the replies of the next one. False if the process ends or hangs before."""
        held, size = self._read_ahead, HEADER_BYTES
        if len(held) < size and not self._fill(size):
            return False
        size += int.from_bytes(held[:size], "little")
        if len(held) < size and not self._fill(size):
            return False
        self._replies.extend(unpack_replies(bytes(held[HEADER_BYTES:size])))
        del held[:size]
        return True

    def _fill(self, num_bytes: int) -> bool:
        """Read ahead until so many bytes are there. False if the process ends or hangs before."""
        deadline = time.monotonic() + WALL_S
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        while len(self._read_ahead) < num_bytes:
            if not ready.poll(max(deadline - time.monotonic(), 0.0) * 1e3):
                return False
            piece = os.read(descriptor, PIECE_BYTES)
            if not piece:
                return False
            self._read_ahead += piece
        return True

    def _why_it_ended(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = -signal.SIGPROF  # it hangs
        self._ended_with = code
        self.close()
        if code == -signal.SIGPROF:
            return f"needs more than {self._cpu_s:g} s for one conversation"
        if code == MEMORY_EXIT:
            return f"needs more than {MEMORY_BYTES >> 20} MiB of memory"
        return f"ended its process with {code}"


def _check(source: str, now: datetime) -> None:
    """Raises ValueError."""
    # Not before it is needed: a process that is told that it is a template starts sooner.
    from batchgen.exec.template_jinja import environment

    try:
        environment(now).parse(source)  # reads it; compiling it would run parts of it
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _packed(conversations: Sequence[list[dict[str, Any]]]) -> bytes:
    """A request. Raises RecursionError."""
    try:
        return msgspec.json.encode(conversations)
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(list(conversations)).encode()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # closing writes what it did not take
                pipe.close()
    process.wait()
