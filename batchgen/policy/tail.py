"""Tail parts: what happens when few rows remain on an engine that steps in lockstep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchgen.policy.base import Part, TailPart
from batchgen.policy.options import option

if TYPE_CHECKING:
    from batchgen.runtime.advisor import Offer
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine


class RunOut(TailPart):
    """Nothing happens."""


class Partition(TailPart):
    """BatchGen's long-tail: spread the few survivors over the idle ranks of their engine.

    Fires when input is closed and nothing waits anywhere, at most `rows_per_rank` x ranks rows are
    left on the engine, and the predicted gain exceeds the cost of the switch by `min_gain` of the
    rest; again when a better layout has come to fit. Undone when rows come. The rest of a row is
    unknown; for a heavy tail it is about as long as what came (mean residual life of a Pareto tail
    of index 2), never more than its budget. Source: BatchGen paper, section 2.6; costs, its table
    2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"switch"})
    partitions = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        rows_per_rank: float = option(1.0, least=0, most=1_000_000)
        min_gain: float = option(0.1, least=0, most=1)

    def layout(self, cluster: ClusterMachine, engine: EngineMachine) -> Offer | None:
        if not 0 < engine.num_running <= self.config.rows_per_rank * engine.home_ranks:
            return None
        rows, table = engine.running_rows(), engine.table
        contexts = [table.v_offset[row] + rank.k for rank in engine.ranks for row in rank.running]
        produced = [
            context - table.v_prompt[row] + 1 for row, context in zip(rows, contexts, strict=True)
        ]
        rest = max(
            min(done, table.v_budget[row] - done) for row, done in zip(rows, produced, strict=True)
        )
        assert cluster.advisor is not None
        offer = cluster.advisor.partition(engine.id, contexts, engine.layout)
        gain_ps = rest * (offer.now_ps - offer.then_ps) - offer.switch_ps
        if offer.layout == engine.layout or gain_ps <= self.config.min_gain * rest * offer.now_ps:
            return None
        return offer
