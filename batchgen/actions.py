"""Actions: everything the runtime may ask of a backend. Plain records; `Step` lives in
batchgen.step."""

from __future__ import annotations

import msgspec

from batchgen.step import Step


class Place(msgspec.Struct, frozen=True, tag="place", gc=False):
    """Rows now belong to (engine, rank)."""

    rows: list[int]
    engine: int
    rank: int


class Cut(msgspec.Struct, frozen=True, tag="cut", gc=False):
    """End the step in flight at the next pass boundary."""

    engine: int


class Copy(msgspec.Struct, frozen=True, tag="copy", gc=False):
    """Move KV of rows between pools: one batch, one event when all of it is done.

    tokens: KV tokens to move per row. Pools are "hbm" and "host" of `engine` (from) and
    `to_engine` (to). purpose: "checkpoint" | "restore" | "migrate".
    """

    copy_id: int
    rows: list[int]
    tokens: list[int]
    engine: int
    to_engine: int
    from_pool: str
    to_pool: str
    purpose: str


class Release(msgspec.Struct, frozen=True, tag="release", gc=False):
    """The rows hold no pages of the pool any more."""

    rows: list[int]
    engine: int
    pool: str


class Finished(msgspec.Struct, frozen=True, tag="finish", gc=False):
    row: int
    reason: str


class Failed(msgspec.Struct, frozen=True, tag="fail", gc=False):
    row: int
    code: str


class Switch(msgspec.Struct, frozen=True, tag="switch", gc=False):
    """Prepare another layout on an engine; the backend answers layout_ready with the new epoch."""

    engine: int
    epoch: int
    layout: str
    rows: list[int]


class MoveExperts(msgspec.Struct, frozen=True, tag="move_experts", gc=False):
    engine: int
    placement: list[int]


class Wake(msgspec.Struct, frozen=True, tag="wake", gc=False):
    """Send Timer(timer_id) at time `at_ps`."""

    timer_id: int
    at_ps: int


Action = Place | Step | Cut | Copy | Release | Finished | Failed | Switch | MoveExperts | Wake
