"""The decision log: every event and the actions that answered it, in order. The backends' contract.

Engine entries are keyed by (engine, q0), which both backends share; the time of an event is kept
beside it because `Runtime.on` takes it as an argument. The log is JSON lines: a header with all
that makes a runtime (plan, policy, rows), then one entry per event. Every entry carries a digest of
itself and of the line before, so that a changed line is found where it was changed (a changed
header at the first event). The digest is a checksum: it finds accidents, not forgers. A log of
steps only, which nothing replays, has none but that of its gzip file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

import msgspec

from batchgen.actions import Action
from batchgen.bodies import Said
from batchgen.errors import ReplayMismatch, UserError
from batchgen.events import Event
from batchgen.plan import Plan

LOG_VERSION = 4


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime is made from. `page_keys` per row, or None without a prefix index.

    produced_tokens: what rows had produced in an earlier process, None if none had any.
    full False: entries hold steps and their ends only (no replay). bodies: name of the body; what
    bodies asked for is in the entries.
    """

    batchgen_log: int = LOG_VERSION
    backend: str
    full: bool
    plan: Plan
    preset: str
    overrides: dict[str, str]
    capabilities: list[str]
    prompt_tokens: list[int]
    budget_tokens: list[int]
    produced_tokens: list[int] | None = None
    groups: list[int] | None = None
    predicted: list[int] | None = None
    page_keys: list[list[int]] | None = None
    reference: bool = False
    bodies: str = ""


class Entry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One event at a time (ps), the actions that answered it, what bodies asked for meanwhile, and
    the chained digest."""

    t: int
    event: Event
    actions: list[Action]
    said: list[Said] | msgspec.UnsetType = msgspec.UNSET
    digest: str = ""


_ENCODER = msgspec.json.Encoder()
_ENTRY = msgspec.json.Decoder(Entry)
_HEADER = msgspec.json.Decoder(Header)


def read_log(
    lines: Iterable[bytes | str], source: str = "decision log"
) -> Iterator[Header | Entry]:
    """The header, then every entry. Raises UserError for a line that is none.

    Raises ReplayMismatch at the first line whose digest does not follow from the line before.
    """
    checksum = 0
    for number, raw in enumerate(lines, start=1):
        line = raw.encode() if isinstance(raw, str) else raw
        line = line.rstrip(b"\n")
        try:
            if number == 1:
                header = _HEADER.decode(line)
                if header.batchgen_log != LOG_VERSION:
                    raise UserError(
                        f"{source} is a decision log of version {header.batchgen_log}, this "
                        f"batchgen reads version {LOG_VERSION}",
                        remedy="replay it with the batchgen that wrote it",
                    )
                checksum = crc32(line)
                yield header
                continue
            entry = _ENTRY.decode(line)
        except msgspec.DecodeError as error:
            raise UserError(
                f"{source}:{number}: {'the header' if number == 1 else f'event {number - 1}'} "
                f"is no line of a decision log ({error})",
                remedy="give the decisions.jsonl.gz of a run made with --log full",
            ) from None
        body = _ENCODER.encode(Entry(entry.t, entry.event, entry.actions, entry.said))
        checksum = crc32(body, checksum)
        digest = f"{checksum:08x}"
        if digest != entry.digest:
            header_too = " (or the header before it)" if number == 2 else ""
            raise ReplayMismatch(
                f"{source}:{number}: event {number - 1} ({type(entry.event).__name__} at "
                f"{entry.t} ps){header_too} was altered: its digest is {entry.digest!r:.40}, it "
                f"should be {digest!r}"
            )
        yield entry


def encode(value: Any) -> bytes:
    """The canonical JSON of an event, an action or a list of them (for comparing byte by byte)."""
    return _ENCODER.encode(value)


def encode_lines(values: Iterable[Any]) -> bytes:
    """The canonical JSON of each of them, with a line end."""
    return _ENCODER.encode_lines(values)
