"""The stages of a group of GPUs, shared by the batches in flight. It knows neither rows nor steps.

A pass that is ready gets all its stages at once, after every pass that was ready before it: no pass
overtakes another. So its end is known when it begins, whatever comes later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.cost.pipeline import PipelineCost
from batchgen.sim.faults import NORMAL_SPEED, Troubles

if TYPE_CHECKING:
    from batchgen.cost.api import CostModel, RankLoad
    from batchgen.sim.faults import Fault


class Pipeline:
    """One pipeline of stages of `gpus_per_stage` GPUs.

    free_ps: when each stage has done all that was given to it. speeds: its pass time in
    thousandths of normal.
    """

    __slots__ = ("_gpus_per_stage", "_troubles", "cost", "free_ps", "slowest", "speeds")

    def __init__(self, cost: PipelineCost, gpus_per_stage: int) -> None:
        self.cost = cost
        self.free_ps = [0] * cost.num_stages
        self.speeds = [NORMAL_SPEED] * cost.num_stages
        self.slowest = NORMAL_SPEED
        self._gpus_per_stage = gpus_per_stage
        self._troubles = [Troubles(gpus_per_stage) for _ in self.speeds]

    def enter(self, load: RankLoad, now: int) -> tuple[list[int], int, int]:
        """A pass is ready: (what it takes in each stage, when it leaves the last, what it would
        take alone at the pace of the slowest stage)."""
        tokens = load[0] + load[2]
        times = self.cost.stages_ps(load)
        hops = self.cost.hops_ps(tokens)
        alone = sum(times) + sum(hops)
        if not tokens:
            return times, now, 0
        if self.slowest != NORMAL_SPEED or min(self.speeds) != NORMAL_SPEED:
            alone = alone * self.slowest // NORMAL_SPEED
            times = [
                time * speed // NORMAL_SPEED for time, speed in zip(times, self.speeds, strict=True)
            ]
        free = self.free_ps
        at = now
        for stage, time in enumerate(times):
            if stage:
                at += hops[stage - 1]
            if free[stage] > at:
                at = free[stage]
            at += time
            free[stage] = at
        return times, at, alone

    def use(self, cost: CostModel) -> None:
        """Passes that begin from now on cost this; the stages stay."""
        assert isinstance(cost, PipelineCost)
        self.cost = cost

    def clear(self, now: int) -> None:
        """Everything in flight is void."""
        self.free_ps = [now] * len(self.free_ps)

    def change(self, gpu: int, fault: Fault) -> None:
        """A GPU is slow, or is so no more: passes that begin from now on feel it."""
        stage, device = divmod(gpu, self._gpus_per_stage)
        self._troubles[stage].change(device, fault)
        self.speeds[stage] = self._troubles[stage].speed
        self.slowest = max(self.speeds)
