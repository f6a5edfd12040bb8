"""Recovery parts: what becomes of the rows of an engine that is noticed, slow or lost."""

from __future__ import annotations

from batchgen.policy.base import RecoveryPart


class Rehome(RecoveryPart):
    """Rows with KV, on a device that will go or on a host that stays, are copied to another
    engine."""


class Cheapest(RecoveryPart):
    """Each row is copied, or prefilled again elsewhere where that takes less time: behind a slow
    network, or with few tokens. Source: BatchGen paper, section 5.6."""

    weighs = True

    def copies(self, copy_ps: int, recompute_ps: int) -> bool:
        return copy_ps <= recompute_ps


class Recompute(RecoveryPart):
    """Rows are prefilled again elsewhere; nothing is copied."""

    moves = False
