"""Actions: everything the runtime may ask of a backend. Plain records; `Step` lives in
batchgen.step."""

from __future__ import annotations

import msgspec

from batchgen.step import Step

Run = tuple[int, int, int]
"""(row, first, count): pages first .. first+count-1 of the row's prompt, by its page keys."""


class Place(msgspec.Struct, frozen=True, tag="place", gc=False):
    """Rows now wait on an engine."""

    rows: list[int]
    engine: int


class Cut(msgspec.Struct, frozen=True, tag="cut", gc=False):
    """End the launched step as early as possible: with the fewest passes whose report is not in the
    past."""

    engine: int


class Leave(msgspec.Struct, frozen=True, tag="leave", gc=False):
    """Rows leave the running set of an engine that launches nothing now."""

    engine: int
    rows: list[int]


class Copy(msgspec.Struct, frozen=True, tag="copy", gc=False):
    """Move KV of rows between pools: one batch, one event when all of it is done.

    rows, tokens: KV tokens to move per row; `ranks` are the ranks that hold or get the HBM pages.
    Pools are "hbm" and "host" of `engine` (from) and `to_engine` (to). purpose: "suspend" |
    "restore" | "migrate".
    """

    copy_id: int
    rows: list[int]
    tokens: list[int]
    ranks: list[int]
    engine: int
    to_engine: int
    from_pool: str
    to_pool: str
    purpose: str


class Release(msgspec.Struct, frozen=True, tag="release", gc=False):
    """The rows hold no pages of the engine's pool ("hbm" or "host") any more."""

    rows: list[int]
    engine: int
    pool: str


class Adopt(msgspec.Struct, frozen=True, tag="adopt", gc=False):
    """An empty row begins with `pages` pages that are published on its rank, found by its keys."""

    row: int
    engine: int
    pages: int


class Publish(msgspec.Struct, frozen=True, tag="publish", gc=False):
    """Pages first .. first+count-1 of the row are known under its keys from now on; the next step
    of the engine computes them."""

    row: int
    engine: int
    first: int
    count: int


class Evict(msgspec.Struct, frozen=True, tag="evict", gc=False):
    """Published pages that no row leases are forgotten; runs name them by a row's keys."""

    engine: int
    rank: int
    runs: list[Run]


class Extend(msgspec.Struct, frozen=True, tag="extend", gc=False):
    """The row's body appended `tokens` known tokens; it may produce up to `budget` in all."""

    row: int
    tokens: int
    budget: int


class Finished(msgspec.Struct, frozen=True, tag="finish", gc=False):
    row: int
    reason: str


class Failed(msgspec.Struct, frozen=True, tag="fail", gc=False):
    """why: what was short, with the numbers."""

    row: int
    code: str
    why: str


class Switch(msgspec.Struct, frozen=True, tag="switch", gc=False):
    """Prepare another layout on an engine for these resident rows; its running set is empty until
    the first step of the new epoch. The backend answers layout_ready or layout_failed."""

    engine: int
    epoch: int
    layout: str
    rows: list[int]


class Wake(msgspec.Struct, frozen=True, tag="wake", gc=False):
    """Send Timer(timer_id) at time `at_ps`. `row` sleeps for `delay_ps` until then (-1: no row)."""

    timer_id: int
    at_ps: int
    row: int = -1
    delay_ps: int = 0


Action = (
    Place
    | Step
    | Cut
    | Leave
    | Copy
    | Release
    | Adopt
    | Publish
    | Evict
    | Extend
    | Finished
    | Failed
    | Switch
    | Wake
)
