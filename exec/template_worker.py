"""The process of a chat template: renders conversations that come on stdin, under limits.

A template is a program from the checkpoint: a short one can ask for any time and any memory. The
system ends this process when it does, and `exec.templates` starts another.

Requests are lines of JSON: first `{"source", "variables", "now", "cpu_s"}`, then lists of
conversations. Each conversation has one reply, and so has the first line: a byte `TEXT` or `ERROR`,
the length of what follows in 4 bytes, little endian, and that in UTF-8. Replies of a line may come
late, but all are sent before the next line is read: what a process has kept to itself when it is
ended is lost, and only a line with one conversation says which one it was.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO

import jinja2

from batchgen.exec.template_jinja import template_of
from batchgen.oneline import name_of, one_line

TEXT, ERROR = b"t", b"e"
HEADER_BYTES = 5
MEMORY_BYTES = 1 << 30  # address space of the process, Python included
MAX_TEXT_BYTES = 32 << 20  # twice the longest line of an input
MEMORY_EXIT = 3
LATEST_S = 0.1  # that a reply may wait for others
MOST_ERROR = 300  # characters of a template's error


def main() -> None:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent's to answer
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    try:
        job = json.loads(requests.readline())
        try:
            signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
            template = template_of(job["source"], datetime.fromisoformat(job["now"]))
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        except MemoryError:
            raise
        except Exception as error:
            _reply(replies, ERROR, _text_of(error))
            replies.flush()
            return
        _reply(replies, TEXT, b"")
        replies.flush()
        variables = {**template.globals, **job["variables"], "add_generation_prompt": True}
        for line in requests:
            sent_s = time.monotonic()
            for messages in json.loads(line):
                # No handler: the signal ends us, in C code too.
                signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
                _reply(replies, *_render(template, variables, messages))
                if time.monotonic() - sent_s > LATEST_S:
                    replies.flush()
                    sent_s = time.monotonic()
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            replies.flush()
    except MemoryError:
        os._exit(MEMORY_EXIT)


def _limit(what: int, most: int) -> None:
    """Where the system knows this limit: macOS does not limit the address space."""
    with suppress(ValueError, OSError):
        resource.setrlimit(what, (most, most))


def _render(
    template: jinja2.Template, variables: dict[str, Any], messages: list[dict[str, Any]]
) -> tuple[bytes, bytes]:
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        # As `generate`, with less around it: `variables` have Jinja's own names already.
        context = template.new_context(variables | {"messages": messages}, shared=True)
        for text in template.root_render_func(context):
            piece = text.encode()
            num_bytes += len(piece)
            if num_bytes > MAX_TEXT_BYTES:
                return ERROR, b"makes a text of more than %d MiB" % (MAX_TEXT_BYTES >> 20)
            pieces.append(piece)
    except MemoryError:
        raise
    except Exception as error:  # the template is a foreign program and may raise anything
        return ERROR, _text_of(error)
    return TEXT, b"".join(pieces)


def _text_of(error: Exception) -> bytes:
    return (one_line(error, MOST_ERROR) or name_of(error)).encode()


def _reply(replies: BinaryIO, kind: bytes, data: bytes) -> None:
    replies.write(kind + len(data).to_bytes(HEADER_BYTES - 1, "little") + data)
