"""The decision log while it is written: lines of log.py, packed as they come. It reads none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from zlib import DEFLATED, Z_SYNC_FLUSH, compressobj, crc32, decompressobj

import msgspec

from batchgen.events import Landed
from batchgen.log import Entry, encode, encode_lines
from batchgen.step import Step

if TYPE_CHECKING:
    from batchgen.actions import Action
    from batchgen.bodies import Bodies, Said
    from batchgen.events import Event
    from batchgen.log import Header

BLOCK_BYTES = 1 << 18
BLOCK_STEPS = 16
GZIP = 31
"""The window bits that stand for gzip in zlib; its header has no time and no name, so the same run
gives the same bytes."""


class DecisionLog:
    """Collects entries as encoded lines, packed by the block: about a fifth of their 300 bytes an
    event stays in memory, nothing unless `keep`. `sink` gets the packed bytes as they come."""

    def __init__(
        self,
        header: Header,
        *,
        sink: Callable[[bytes], None] = lambda packed: None,
        keep: bool = True,
    ) -> None:
        self._full = header.full
        self._sink, self._keep = sink, keep
        self._is_closed = False
        first = encode(header)
        self._gzip = compressobj(1, DEFLATED, GZIP)
        self._packed: list[bytes] = []
        self._block = bytearray(first + b"\n")
        self._steps: list[Entry] = []
        self._count = 0
        self._checksum = crc32(first)
        self._bodies: Bodies | None = None

    def listen(self, bodies: Bodies | None) -> None:
        """What these bodies ask for is part of the entries from now on."""
        self._bodies = bodies
        if bodies is not None:
            bodies.said = []

    def __call__(self, event: Event, now: int, actions: list[Action]) -> None:
        """Observe one event (the `observer` of both backends)."""
        said: list[Said] | msgspec.UnsetType = msgspec.UNSET
        if self._bodies is not None and self._bodies.said:
            said, self._bodies.said = self._bodies.said, []
        if not self._full:
            self._observe_steps(event, now, actions)
            return
        body = encode(Entry(now, event, actions, said))
        self._checksum = crc32(body, self._checksum)
        self._block += body[:-1] + b',"digest":"%08x"}\n' % self._checksum
        self._count += 1
        if len(self._block) >= BLOCK_BYTES:
            self._pack()

    def _observe_steps(self, event: Event, now: int, actions: list[Action]) -> None:
        """Steps and their ends. Encoded many at a time, for half of what one by one costs."""
        steps: list[Action] = [action for action in actions if type(action) is Step]
        if steps or type(event) is Landed:
            self._steps.append(Entry(now, event, steps))
            self._count += 1
            if len(self._steps) == BLOCK_STEPS:
                self._pack()

    def _pack(self) -> None:
        self._give(self._gzip.compress(self._lines()))

    def _give(self, packed: bytes) -> None:
        """To the sink, and to memory; what it was made of goes."""
        if packed:
            self._sink(packed)
            if self._keep:
                self._packed.append(packed)
        self._block.clear()
        self._steps.clear()

    def _lines(self) -> bytes:
        """What is not packed yet."""
        return bytes(self._block) + encode_lines(self._steps)

    def flush(self) -> None:
        """The sink has all that was observed, readable to its last line."""
        if self._block or self._steps:
            self._give(self._gzip.compress(self._lines()) + self._gzip.flush(Z_SYNC_FLUSH))

    def close(self) -> None:
        """The sink has a whole file. Nothing may be observed afterwards."""
        if not self._is_closed:
            self._is_closed = True
            self._give(self._gzip.compress(self._lines()) + self._gzip.flush())

    def __len__(self) -> int:
        return self._count

    def packed(self) -> Iterator[bytes]:
        """The bytes of a gzip file of the lines. Only of a log that keeps them."""
        yield from self._packed
        if self._is_closed:
            return
        rest = self._gzip.copy()
        yield rest.compress(self._lines()) + rest.flush()

    def lines(self) -> Iterator[str]:
        """JSON lines without line ends: the header, then the entries."""
        gunzip = decompressobj(GZIP)
        begun = b""
        for packed in self.packed():
            *whole, begun = (begun + gunzip.decompress(packed)).split(b"\n")
            for line in whole:
                yield line.decode()
