"""The process of a chat template: renders conversations that come on stdin, under limits.

A template is a program from the checkpoint: a short one can ask for any time and any memory. The
system ends this process when it does, and `exec.templates` starts another. What
comes and goes is in `exec.template_wire`.
"""

from __future__ import annotations

import gc
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
from batchgen.exec.template_wire import (
    MAX_TEXT_BYTES,
    MEMORY_BYTES,
    MEMORY_EXIT,
    Refusal,
    pack_replies,
)
from batchgen.oneline import name_of, one_line

LATEST_S = 0.1  # that a reply may wait for others
MOST_WAITING = 1 << 20  # characters of replies that wait
MOST_ERROR = 300  # characters of a template's error
TOO_LONG = Refusal(f"makes a text of more than {MAX_TEXT_BYTES >> 20} MiB")


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
            _send(replies, [_refusal(error)])
            return
        _send(replies, [""])
        gc.freeze()  # what is there stays, and need not be looked through again and again
        variables = {**template.globals, **job["variables"], "add_generation_prompt": True}
        for line in requests:
            _serve(replies, template, variables, json.loads(line), job["cpu_s"])
    except MemoryError:
        os._exit(MEMORY_EXIT)


def _serve(
    replies: BinaryIO,
    template: jinja2.Template,
    variables: dict[str, Any],
    conversations: list[list[dict[str, Any]]],
    cpu_s: float,
) -> None:
    """Render a request. Of several conversations one may have `LATEST_S` less than `cpu_s`: if that
    was not enough it comes again, alone."""
    waiting: list[str] = []
    num_characters = 0
    sent_s = armed_s = time.monotonic()
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # no handler: the signal ends us, in C code too
    for messages in conversations:
        reply = _render(template, variables, messages)
        waiting.append(reply)
        num_characters += len(reply)
        now_s = time.monotonic()
        if now_s - sent_s > LATEST_S or num_characters > MOST_WAITING:
            _send(replies, waiting)
            waiting, num_characters, sent_s = [], 0, now_s
        if now_s - armed_s > LATEST_S:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            armed_s = now_s
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    if waiting:
        _send(replies, waiting)


def _limit(what: int, most: int) -> None:
    """Where the system knows this limit: macOS does not limit the address space."""
    with suppress(ValueError, OSError):
        resource.setrlimit(what, (most, most))


def _render(
    template: jinja2.Template, variables: dict[str, Any], messages: list[dict[str, Any]]
) -> str:
    pieces: list[str] = []
    num_characters = 0
    try:
        # As `generate`, with less around it: `variables` have Jinja's own names already.
        made = template.environment
        context = made.context_class(
            made, variables | {"messages": messages}, template.name, template.blocks
        )
        for piece in template.root_render_func(context):
            num_characters += len(piece)
            if num_characters > MAX_TEXT_BYTES:
                return TOO_LONG
            pieces.append(piece)
        text = "".join(pieces)
        if len(text.encode()) > MAX_TEXT_BYTES:  # which half of a surrogate pair has not
            return TOO_LONG
    except MemoryError:
        raise
    except Exception as error:  # the template is a foreign program and may raise anything
        return _refusal(error)
    return text


def _refusal(error: Exception) -> Refusal:
    return Refusal(one_line(error, MOST_ERROR) or name_of(error))


def _send(replies: BinaryIO, some: list[str]) -> None:
    replies.write(pack_replies(some))
    replies.flush()
