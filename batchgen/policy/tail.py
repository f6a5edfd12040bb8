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

    Fires once per engine when nothing waits anywhere, at most `rows_per_rank` x ranks rows are
    left,
    and the predicted gain exceeds the cost of the switch by `min_gain`. The rest of a row is
    unknown;
    for a heavy tail what is left is about as long as what came (mean residual life of a Pareto tail
    of index 2), never more than its budget. Source: BatchGen paper, section 2.6; costs, table 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"switch"})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        rows_per_rank: float = 0.5
        min_gain: float = 0.1

    def layout(self, view: Cluster, engine: Engine) -> str | None:
        ranks = len(engine.ranks)
        running = [row for rank in engine.ranks for row in rank.running]
        if engine.layout != "home" or ranks < 2 or not running or view.advisor is None:
            return None
        if len(running) > self.config.rows_per_rank * ranks or view.total_waiting:
            return None
        if engine.num_unfinished > len(running):
            return None
        table, q = view.table, engine.q
        contexts = [table.v_offset[row] + q for row in running]
        rest = max(
            min(produced, table.v_budget[row] - produced)
            for row, context in zip(running, contexts, strict=True)
            for produced in (context - table.v_prompt[row] + 1,)
        )
        now_ps, then_ps, switch_ps = view.advisor.partition_ps(engine.id, contexts)
        gain_ps = rest * (now_ps - then_ps) - switch_ps
        return "partition" if gain_ps > self.config.min_gain * rest * now_ps else None
