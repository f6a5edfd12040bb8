"""A process of a `Crew`: makes the chunks that come on stdin, until that ends.

Messages are a length in 8 bytes, little endian, and so many bytes: first a pickled `Maker`, then
chunks. Each chunk has a reply, which is empty where it could not be made.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import IO

from batchgen.job.encoding import Maker

HEADER_BYTES = 8


def main() -> None:
    """Serve until stdin ends. Leaves without a word when the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent's to answer
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    # What code of others prints must not come between our replies.
    sys.stdout = sys.stderr
    setup = read_message(requests)
    if setup is None:
        return
    maker: Maker = pickle.loads(setup)
    while (request := read_message(requests)) is not None:
        try:
            write_message(replies, _reply(maker, request))
        except OSError:
            os._exit(0)


def _reply(maker: Maker, request: bytes) -> bytes:
    try:
        return pickle.dumps(maker.encoded(pickle.loads(request)))
    except Exception:  # the encoder's; whoever sent the chunk makes it again and meets it there
        return b""


def write_message(file: IO[bytes], data: bytes) -> None:
    """Raises OSError if nobody reads."""
    file.write(len(data).to_bytes(HEADER_BYTES, "little"))
    file.write(data)
    file.flush()


def read_message(file: IO[bytes]) -> bytes | None:
    """The next one; None at the end."""
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    size = int.from_bytes(header, "little")
    data = file.read(size)
    return data if len(data) == size else None
