"""Events: everything a backend may tell the runtime. Plain records; they decide nothing.

Engine events carry (engine, epoch). Times reach the runtime as the `now` argument of `Runtime.on`,
in integer picoseconds, and are never part of a decision's key. At equal times external events come
before step ends (`turn`).
"""

from __future__ import annotations

import msgspec

Finish = tuple[int, int, str]
"""(row, tokens it has produced in all, reason: "stop" or "length")."""


class Arrived(msgspec.Struct, frozen=True, tag="arrived", gc=False):
    rows: list[int]


class InputClosed(msgspec.Struct, frozen=True, tag="input_closed", gc=False):
    pass


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled", gc=False):
    rows: list[int]


class Landed(msgspec.Struct, frozen=True, tag="landed", gc=False, omit_defaults=True):
    """A step is over, or its last pass is all that is left of it.

    end: the pass counter behind the step's last pass. The event comes when pass end - 1 - lag ends
    (lag = plan.depth - 1), with every outcome up to that pass that was not reported before. Tokens
    are implied: every decoding row got one per pass, every last chunk one.
    duration_ps: time of the passes that ended since the engine's last report.
    ended_by: "finish" | "n" | "cut".
    """

    engine: int
    end: int
    epoch: int = 0
    finished: list[Finish] = []
    duration_ps: int = 0
    ended_by: str = "n"


class Drained(msgspec.Struct, frozen=True, tag="drained", gc=False):
    """With lag: the engine's last pass ended and nothing was launched behind it."""

    engine: int
    epoch: int
    finished: list[Finish]
    duration_ps: int


class CopiesDone(msgspec.Struct, frozen=True, tag="copies_done", gc=False):
    copy_id: int


class CopiesFailed(msgspec.Struct, frozen=True, tag="copies_failed", gc=False):
    """Nothing of the batch arrived; its source is as it was."""

    copy_id: int


class LayoutReady(msgspec.Struct, frozen=True, tag="layout_ready", gc=False):
    engine: int
    epoch: int


class LayoutFailed(msgspec.Struct, frozen=True, tag="layout_failed", gc=False):
    engine: int
    epoch: int


class DeviceNotice(msgspec.Struct, frozen=True, tag="device_notice", gc=False):
    """A device of the engine will go away at `deadline_ps` (a spot notice)."""

    engine: int
    device: int
    deadline_ps: int


class DeviceLost(msgspec.Struct, frozen=True, tag="device_lost", gc=False):
    """A device of the engine is gone, and with it the HBM of all its ranks.

    end: passes below this number had ended before (at most one behind what was launched, with lag).
    finished: outcomes of those passes that were not reported.
    """

    engine: int
    device: int
    end: int
    finished: list[Finish]


class DeviceBack(msgspec.Struct, frozen=True, tag="device_back", gc=False):
    """A device returns, or its notice is withdrawn; the engine lives again when all are there."""

    engine: int
    device: int


class RowFailed(msgspec.Struct, frozen=True, tag="row_failed", gc=False):
    row: int
    code: str


class PoolShort(msgspec.Struct, frozen=True, tag="pool_short", gc=False):
    """A backend found `pages` fewer HBM pages than planned on a rank (for instance out of
    memory)."""

    engine: int
    rank: int
    pages: int


class Timer(msgspec.Struct, frozen=True, tag="timer", gc=False):
    timer_id: int


class PlanChanged(msgspec.Struct, frozen=True, tag="plan_changed", gc=False):
    """New dynamic limits; sizes of pools and layouts do not change this way."""

    token_budget: int
    max_num_seqs: int


Event = (
    Arrived
    | InputClosed
    | Cancelled
    | Landed
    | Drained
    | CopiesDone
    | CopiesFailed
    | LayoutReady
    | LayoutFailed
    | DeviceNotice
    | DeviceLost
    | DeviceBack
    | RowFailed
    | PoolShort
    | Timer
    | PlanChanged
)

DEVICE, INPUT, OTHER, COPY, LAYOUT, STEP = range(6)
"""Turns: at equal time events are told in this order, those of one turn in the order in which they
were scheduled; in the last one, reports of steps, engines go by number."""

_TURNS: dict[type, int] = {
    DeviceNotice: DEVICE,
    DeviceLost: DEVICE,
    DeviceBack: DEVICE,
    Arrived: INPUT,
    InputClosed: INPUT,
    CopiesDone: COPY,
    CopiesFailed: COPY,
    LayoutReady: LAYOUT,
    LayoutFailed: LAYOUT,
    Landed: STEP,
    Drained: STEP,
}


def turn(event: Event) -> int:
    """The turn of an event among those of its time."""
    return _TURNS.get(type(event), OTHER)
