"""What goes between a chat template's process and ours, and its limits. Sends nothing itself.

Only the standard library: either side loads it, and starts in no time.

Requests are lines of JSON: first `{"source", "variables", "now", "cpu_s"}`, then lists of
conversations. Each conversation has one reply, and so has the first line: a text, or why there is
none. Replies come several in a message: its length and their number in 4 bytes each, little endian;
of each the characters in 4 bytes, -1 - n where it is no text; and all of them in UTF-8, one behind
the other. Those of a line may come late, but all are sent before the next line is read: what a
process has kept to itself when it is ended is lost, and only a line with one conversation says
which one it was, and has all of its `cpu_s` for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

HEADER_BYTES = 4
MEMORY_BYTES = 1 << 30  # address space of the process, Python included
MAX_TEXT_BYTES = 32 << 20  # twice the longest line of an input
MEMORY_EXIT = 3


class Refusal(str):
    """A reply that is no text: why."""

    __slots__ = ()


def pack_replies(replies: Sequence[str]) -> bytes:
    """A message, its length included; some replies are a `Refusal`."""
    sizes = [~len(one) if isinstance(one, Refusal) else len(one) for one in replies]
    data = "".join(replies).encode()
    head = struct.pack(f"<{1 + len(sizes)}i", len(sizes), *sizes)
    return (len(head) + len(data)).to_bytes(HEADER_BYTES, "little") + head + data


def unpack_replies(data: bytes) -> list[str]:
    """The replies of a message, without its length."""
    (number,) = struct.unpack_from("<i", data)
    sizes = struct.unpack_from(f"<{number}i", data, 4)
    text = data[4 + 4 * number :].decode()
    replies, begin = [], 0
    for size in sizes:
        end = begin + (size if size >= 0 else ~size)
        replies.append(text[begin:end] if size >= 0 else Refusal(text[begin:end]))
        begin = end
    return replies
