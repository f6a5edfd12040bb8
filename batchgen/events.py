"""Events: everything a backend may tell the runtime. Plain records; they decide nothing.

Engine events carry (engine, epoch); a step's identity is its q0. Times reach the runtime as the
`now` argument of `Runtime.on`, in integer picoseconds, and are never part of a decision's key.
"""

from __future__ import annotations

import msgspec

Finish = tuple[int, int, str]
"""(row, offset of the pass inside the step, reason: "stop", "length" or an error code)."""


class Arrived(msgspec.Struct, frozen=True, tag="arrived", gc=False):
    rows: list[int]


class InputClosed(msgspec.Struct, frozen=True, tag="input_closed", gc=False):
    pass


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled", gc=False):
    rows: list[int]


class StepDone(msgspec.Struct, frozen=True, tag="step_done", gc=False):
    """A step ended after `passes` whole passes.

    ended_by: "finish" | "n" | "cut" | "failed". Tokens are implied: every decoding row got one per
    pass, every last chunk one. After "failed" only the passes that completed count.
    """

    engine: int
    epoch: int
    q0: int
    passes: int
    finished: list[Finish]
    duration_ps: int
    ended_by: str


class SlotFree(msgspec.Struct, frozen=True, tag="slot_free", gc=False):
    engine: int


class CopiesDone(msgspec.Struct, frozen=True, tag="copies_done", gc=False):
    copy_id: int


class CopiesFailed(msgspec.Struct, frozen=True, tag="copies_failed", gc=False):
    copy_id: int


class LayoutReady(msgspec.Struct, frozen=True, tag="layout_ready", gc=False):
    engine: int
    epoch: int


class LayoutFailed(msgspec.Struct, frozen=True, tag="layout_failed", gc=False):
    engine: int
    epoch: int


class DeviceNotice(msgspec.Struct, frozen=True, tag="device_notice", gc=False):
    """The engine's device will go away at `deadline_ps` (a spot notice)."""

    engine: int
    deadline_ps: int


class DeviceLost(msgspec.Struct, frozen=True, tag="device_lost", gc=False):
    engine: int


class DeviceBack(msgspec.Struct, frozen=True, tag="device_back", gc=False):
    engine: int


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
    | StepDone
    | SlotFree
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
