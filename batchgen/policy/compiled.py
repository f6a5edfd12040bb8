"""A policy compiled once: what its parts declare, as flags and bound methods. It decides nothing.

Questions that a part cannot change its mind about are answered here, once, and never asked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.errors import UserError
from batchgen.policy.base import CHANGES
from batchgen.policy.foreign import declared, guarded

if TYPE_CHECKING:
    from batchgen.policy.presets import Policy


class Compiled:
    """What the machines read of a policy.

    reads_ended: a part looks at what has ended; steps end at the first finish while rows may come.
    ask_each_pass: admission may change its mind at any pass; steps have one pass while it matters.
    renews: something begins anew when an engine is empty (a batch, a host's streams).
    choosy: after somebody gave way another row may fit, so the next decision is one pass away.
    """

    __slots__ = (
        "admission",
        "ask_each_pass",
        "boundaries_ahead",
        "choosy",
        "copies",
        "gathers",
        "keyed",
        "learns",
        "lease",
        "lockstep_only",
        "matches",
        "memory",
        "moves",
        "newest",
        "num_lanes",
        "order",
        "pace",
        "paces",
        "partitions",
        "pauses",
        "phase",
        "phases",
        "placement",
        "plans",
        "predictor",
        "rank_victim",
        "reads_ended",
        "recomputes",
        "renews",
        "reserves",
        "room",
        "room_for",
        "sees_row",
        "shares",
        "stalls",
        "static",
        "steal_min",
        "steals",
        "streams",
        "suspends",
        "tail",
        "two_ended",
        "weighs",
        "whole",
        "whole_batch",
    )

    def __init__(self, policy: Policy) -> None:
        for slot, part in policy.parts.items():
            if part.changes not in CHANGES:
                raise UserError(
                    f"{slot} part {type(part).__name__} declares changes = {part.changes!r}",
                    remedy=f"declare one of {', '.join(CHANGES)}",
                )
        admission, memory = guarded(policy["admission"]), guarded(policy["memory"])
        order, batching = guarded(policy["order"]), guarded(policy["batching"])
        self.admission, self.memory, self.order = admission, memory, order
        self.phase, self.placement = guarded(policy["phase"]), guarded(policy["placement"])
        self.tail, self.predictor = guarded(policy["tail"]), guarded(policy["predictor"])
        self.reserves, self.whole_batch = admission.reserves, admission.whole_batch
        self.lease, self.room = admission.lease, admission.room
        self.ask_each_pass = batching.paces or "pass" in (admission.changes, order.changes)
        self.suspends = memory.way == "suspend"
        self.stalls = memory.way == "stall"
        self.recomputes = memory.way == "recompute"
        if not (self.suspends or self.stalls or self.recomputes):
            raise UserError(
                f"memory part {type(policy['memory']).__name__} declares way = {memory.way!r}",
                remedy="declare recompute, suspend or stall",
            )
        self.newest, self.rank_victim = memory.newest, memory.rank_victim
        self.streams = memory.streams
        self.boundaries_ahead = max(1, declared(policy["memory"], "boundaries_ahead", int))
        self.sees_row, self.room_for = admission.sees_row, admission.room_for
        self.keyed = order.keyed
        self.plans, self.two_ended = order.plans, order.plans and order.two_ended
        self.matches = declared(policy["order"], "matches", int)
        self.shares = declared(policy["order"], "shares", lambda some: tuple(map(float, some)))
        self.num_lanes = len(self.shares)
        if not self.shares or min(self.shares) <= 0 or sum(self.shares) > 1 + 1e-9:
            raise UserError(
                f"order part {type(policy['order']).__name__} has shares {self.shares}",
                remedy="every lane needs a share above 0, and all together at most 1",
            )
        if self.num_lanes > 1 and self.plans:
            raise UserError(
                f"order part {type(policy['order']).__name__} plans {self.num_lanes} lanes",
                remedy="leave one share",
            )
        self.choosy = (
            self.num_lanes > 1
            or self.plans
            or bool(self.matches)
            or not (self.recomputes and self.newest)
        )
        self.phases, self.lockstep_only = self.phase.phases, self.phase.lockstep_only
        self.gathers = self.phase.gathers and not self.phases
        self.pauses = self.phase.pauses and not self.phases
        self.whole, self.static = batching.whole, batching.static
        self.paces, self.pace = batching.paces, batching.pace
        self.renews = self.whole_batch or self.static or self.streams
        self.steals = self.placement.steals
        self.steal_min = max(declared(policy["placement"], "steal_min", int), 2)
        self.partitions = self.tail.partitions
        recovery = guarded(policy["recovery"])
        self.moves, self.weighs, self.copies = recovery.moves, recovery.weighs, recovery.copies
        self.learns = self.predictor.learns
        self.reads_ended = any(part.changes == "finish" for part in policy.parts.values())
