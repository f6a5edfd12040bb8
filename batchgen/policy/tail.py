"""Tail parts: what happens when few rows remain on an engine that steps in lockstep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchgen.policy.base import Part

if TYPE_CHECKING:
    from batchgen.runtime.cluster import Cluster
    from batchgen.runtime.engine import Engine


class TailPart(Part):
    """Base: the tail runs as it is."""

    def layout(self, view: Cluster, engine: Engine) -> str | None:
        """The layout that the engine should switch to now; None: stay."""
        return None


class RunOut(TailPart):
    """Nothing happens."""


class Partition(TailPart):
    """BatchGen's long-tail: spread the few survivors over the idle ranks of their engine.

    Fires when nothing waits anywhere, at most `rows_per_rank` x ranks rows are left on the engine,
    and the predicted gain exceeds the cost of the switch by `min_gain` of the rest; again when a
    better layout has come to fit. The rest of a row is unknown; for a heavy tail it is about as
    long as what came (mean residual life of a Pareto tail of index 2), never more than its budget.
    Source: BatchGen paper, section 2.6; costs, its table 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"switch"})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        rows_per_rank: float = 1.0
        min_gain: float = 0.1

    def layout(self, view: Cluster, engine: Engine) -> str | None:
        ranks = len(engine.ranks)
        if ranks < 2 or view.advisor is None or view.total_waiting or engine.switch_failed:
            return None
        running = [row for rank in engine.ranks for row in rank.running]
        if not running or len(running) > self.config.rows_per_rank * ranks:
            return None
        if engine.num_unfinished > len(running):
            return None
        table, q = view.table, engine.q
        contexts = [table.v_offset[row] + q for row in running]
        produced = [
            context - table.v_prompt[row] + 1
            for row, context in zip(running, contexts, strict=True)
        ]
        rest = max(
            min(done, table.v_budget[row] - done)
            for row, done in zip(running, produced, strict=True)
        )
        layout, now_ps, then_ps, switch_ps = view.advisor.partition_ps(
            engine.id, contexts, engine.layout
        )
        gain_ps = rest * (now_ps - then_ps) - switch_ps
        if layout == engine.layout or gain_ps <= self.config.min_gain * rest * now_ps:
            return None
        return layout
