"""A process of a `Crew`: makes the chunks that come on stdin, until that ends.

Messages are a length in 8 bytes, little endian, and so many bytes (`job.wire`): first a setup, then
chunks. Each chunk has a reply, which is empty where it could not be made.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

import msgspec

from batchgen.job.encoding import Maker
from batchgen.job.wire import (
    Setup,
    maker_of,
    pack_encoded,
    read_message,
    unpack_chunk,
    write_message,
)


def main() -> None:
    """Serve until stdin ends. Leaves without a word when the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent's to answer
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    # What code of others prints must not come between our replies.
    sys.stdout = sys.stderr
    data = read_message(requests)
    if data is None:
        return
    setup = msgspec.msgpack.decode(data, type=Setup)
    module, name = setup.recipe[0].split(":")
    maker = maker_of(setup, getattr(import_module(module), name).made(*setup.recipe[1]))
    while (request := read_message(requests)) is not None:
        try:
            write_message(replies, _reply(maker, request))
        except OSError:
            os._exit(0)


def _reply(maker: Maker, request: bytes) -> bytes:
    try:
        return pack_encoded(maker.encoded(unpack_chunk(request)))
    except Exception:  # the encoder's; whoever sent the chunk makes it again and meets it there
        return b""
