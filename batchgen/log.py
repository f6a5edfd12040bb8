"""The decision log: every event and the actions that answered it, in order. The backends' contract.

Engine entries are keyed by (engine, q0), which both backends share; the time of an event is kept
beside it because `Runtime.on` takes it as an argument. Lines are JSON, one event each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from batchgen.actions import Action
from batchgen.events import Event, StepDone
from batchgen.step import Step


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One event at a time (ps) with the actions that answered it."""

    t: int
    event: Event
    actions: list[Action]


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Entry)


class DecisionLog:
    """Collects entries as encoded lines (about 100 bytes an event; objects would take ten times it).

    `full` False keeps steps and their ends only.
    """

    def __init__(self, *, full: bool = True) -> None:
        self._full = full
        self._lines: list[bytes] = []

    def __call__(self, event: Event, now: int, actions: list[Action]) -> None:
        """Observe one event (the `observer` of both backends)."""
        if not self._full:
            actions = [action for action in actions if type(action) is Step]
            if type(event) is not StepDone and not actions:
                return
        self._lines.append(_ENCODER.encode(Entry(now, event, actions)))

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> Iterator[str]:
        """JSON lines without line ends."""
        for line in self._lines:
            yield line.decode()

    def entries(self) -> Iterator[Entry]:
        """Decoded entries."""
        return read_entries(self._lines)


def read_entries(lines: Iterable[bytes | str]) -> Iterator[Entry]:
    """Entries of JSON lines; raises msgspec.ValidationError on a line that is none."""
    for line in lines:
        yield _DECODER.decode(line)


def encode(value: Any) -> bytes:
    """The canonical JSON of an event, an action or a list of them (for comparing byte by byte)."""
    return _ENCODER.encode(value)
