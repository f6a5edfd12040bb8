"""Recovery parts: what an engine does with its rows when its device is noticed, slow or lost."""

from __future__ import annotations

from typing import Any

from batchgen.memory.pool import FOREVER
from batchgen.policy.base import EnginePart
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine


class Rehome(EnginePart):
    """A draining engine admits nobody and yields its rows; the cluster gives them a new home.

    Rows with a whole checkpoint keep it (the host outlives the device); others are recomputed.
    """

    def decide_engine(self, view: Engine, draft: Draft, state: Any) -> None:
        if view.heir is not None and view.phase != "prefill":
            self._yield_all(view, draft)
        if not view.draining:
            return
        for rank in view.ranks:
            draft.begin(rank)
            for row in [*rank.running, *rank.prefilling, *rank.parked]:
                draft.recompute(row)

    @staticmethod
    def _yield_all(view: Engine, draft: Draft) -> None:
        """Another engine takes over: running rows go to the host, or are recomputed without one."""
        for rank in view.ranks:
            draft.begin(rank)
            for row in [*rank.running, *rank.parked]:
                if view.host.size:
                    draft.suspend(row)
                else:
                    draft.recompute(row)

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER
