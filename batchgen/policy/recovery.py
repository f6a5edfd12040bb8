"""Recovery parts: what becomes of the rows of an engine that is noticed, slow or lost."""

from __future__ import annotations

from batchgen.policy.base import RecoveryPart


class Rehome(RecoveryPart):
    """Rows with KV, on a device that will go or on a host that stays, are copied to another
    engine."""


class Recompute(RecoveryPart):
    """Rows are prefilled again elsewhere; nothing is copied."""

    moves = False
