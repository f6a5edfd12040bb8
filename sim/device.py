"""One engine of the simulated cluster: its flight, its link, its troubles. It schedules nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.actions import Copy
from batchgen.cost.pipeline import PipelineCost
from batchgen.runtime.advisor import HOME
from batchgen.sim.faults import NORMAL_SPEED, Troubles
from batchgen.sim.flight import Flight
from batchgen.sim.hostlink import HostLink
from batchgen.sim.pipeflight import PipeFlight
from batchgen.sim.pipeline import Pipeline
from batchgen.sim.stepend import StepEnd

if TYPE_CHECKING:
    import simpy

    from batchgen.cost.api import CostModel
    from batchgen.plan import Plan
    from batchgen.sim.rowbook import RowBook
    from batchgen.step import Step


class Device:
    """One engine's flight, its troubles, those of its hosts, and its link, which the engines of a
    pipeline share."""

    __slots__ = (
        "end",
        "epoch",
        "flight",
        "host",
        "launched",
        "layout",
        "life",
        "link",
        "newest",
        "troubles",
    )

    def __init__(self, flight: Flight, num_gpus: int, end: StepEnd, link: HostLink) -> None:
        self.flight = flight
        self.troubles, self.host = Troubles(num_gpus), Troubles(num_gpus)
        self.layout = HOME
        self.end = end
        self.epoch = 0  # of the newest launched step
        self.launched = 0  # in answer to which event, by number
        self.newest: Step | None = None  # the step that was reported last
        self.life = 0  # copies to and from the HBM of an earlier life never end
        self.link = link


def copy_ps(action: Copy, device: Device, target: Device, link: str) -> int:
    """How long a copy takes: each rank has its own link, the batch ends with its slowest rank, and
    with the slowest host at either end of it."""
    per_rank: dict[int, int] = {}
    for rank, tokens in zip(action.ranks, action.tokens, strict=True):
        per_rank[rank] = per_rank.get(rank, 0) + tokens
    cost = device.flight.cost
    duration = max(cost.copy_ps(tokens, link) for tokens in per_rank.values())  # type: ignore[arg-type]
    pools = ((action.from_pool, device), (action.to_pool, target))
    speed = max([one.host.speed for pool, one in pools if pool == "host"], default=NORMAL_SPEED)
    return duration * speed // NORMAL_SPEED


def new_end(env: simpy.Environment, engine: int) -> StepEnd:
    """The event that an engine's reports use, not scheduled."""
    event = StepEnd(env)
    event.number = engine
    event.queued = False
    event._ok = True
    event._value = None
    return event


def make_devices(
    plan: Plan, book: RowBook, cost: CostModel, env: simpy.Environment
) -> tuple[list[Device], list[Pipeline]]:
    """The engines of a plan, and the pipelines that they share, if the cost is that of pipelines:
    those of one follow each other in the plan, one per stage."""
    devices: list[Device] = []
    pipelines: list[Pipeline] = []
    for spec in plan.engines:
        engine, link = spec.engine, HostLink()
        if isinstance(cost, PipelineCost):
            if engine % cost.num_stages == 0:
                pipelines.append(Pipeline(cost, spec.num_gpus))
            else:
                link = devices[-1].link
            flight: Flight = PipeFlight(engine, book, cost, plan.lag, pipelines[-1])
        else:
            flight = Flight(engine, book, cost, plan.lag)
        devices.append(Device(flight, spec.num_gpus, new_end(env, engine), link))
    return devices, pipelines
