"""Device trouble of a simulated run: a device trace as changes of the GPUs of a job, and what they
come to for an engine. The format and how troubles of one GPU compose: batchgen.trace.devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.errors import UserError
from batchgen.paths import check_input
from batchgen.trace.devices.compose import OWN_SKEW, Change, compose
from batchgen.trace.devices.events import NORMAL
from batchgen.trace.devices.read import Cluster, load

if TYPE_CHECKING:
    from batchgen.machine import Machine
    from batchgen.simjob import SimJob

__all__ = ["NORMAL_SPEED", "OWN_SKEW", "Fault", "Troubles", "check_faults", "load_faults"]

NORMAL_SPEED = NORMAL
Fault = Change


class Troubles:
    """A factor per GPU of one engine, in thousandths. The engine waits for its slowest GPU."""

    def __init__(self, num_gpus: int) -> None:
        self._num_gpus = num_gpus
        self._factors: dict[int, int] = {}

    def change(self, gpu: int, fault: Fault) -> None:
        """A GPU has another factor from now on."""
        self._factors.pop(gpu, None)
        if fault.speed != NORMAL_SPEED:
            self._factors[gpu] = fault.speed

    @property
    def speed(self) -> int:
        """Time of the engine in thousandths of normal."""
        factors = list(self._factors.values())
        if len(factors) < self._num_gpus:
            factors.append(NORMAL_SPEED)
        return max(factors)


def load_faults(path: str, num_gpus: int, gpus_per_node: int = 1) -> list[Fault]:
    """Changes in time order. Raises DataError per bad line."""
    check_input("device trace", path, remedy="give a JSONL file")
    trace = load(path, cluster=Cluster(num_gpus, gpus_per_node))
    return compose(trace.troubles, num_gpus, gpus_per_node)


def check_faults(faults: list[Fault], machine: Machine, job: SimJob) -> None:
    """Raises UserError for a trouble that the simulator cannot show on this machine."""
    first = {fault.kind: fault for fault in reversed(faults)}
    if "host" in first and machine.planner.fixed:
        raise UserError(
            f"{job.faults}: 'host' lines slow copies of KV, not passes that read weights or KV on "
            "the host",
            remedy="leave them out, or plan.weights and plan.kv",
        )
    if "skew" in first and job.profile is not None and not machine.planner.home.detailed:
        raise UserError(
            f"{job.faults}: 'skew' lines change nothing in a measured profile",
            remedy="leave them out, or --profile",
        )
