"""What a simulation is asked to do: pure data, shared by the command line, jobs and the simulator.

It checks ranges only; names of models, GPUs, policies and files are resolved by the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from batchgen.errors import UserError

if TYPE_CHECKING:
    from batchgen.report.record import RunRecord
    from batchgen.trace.table import Trace

ARRIVALS = ("batch", "trace")
LOGS = ("off", "steps", "full")
COSTS = ("roofline", "measured")
MOST_GPUS = 1 << 20
"""Of a cluster: each is an object in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimJob:
    """One simulated run of one policy.

    trace: path of a trace in the batchgen schema. model: catalog name or folder with a config.json.
    gpus_per_node None: the catalog's node. cluster: name or path of a cluster, whose GPU, nodes and
    links then count. layout None: the default rule, reported in the record.
    overrides: ("part.option", "value") pairs in the order given. arrivals "batch" puts every row at
    time 0. max_output_tokens None: the largest output of the trace is every row's budget. oracle:
    the policy sees true output lengths. profile: JSON of `batchgen profile`, or a folder of
    operator profiles of an engine; None: what `costs` says, the roofline or measured kernels.
    limit: only the first rows of the trace. body: module:function of a sequence body; None: rows go
    through the stages that the trace has for them.
    """

    trace: str
    model: str = "deepseek-r1"
    gpu: str = "h20"
    gpus: int = 128
    gpus_per_node: int | None = None
    cluster: str | None = None
    layout: str | None = None
    policy: str = "batchgen"
    overrides: tuple[tuple[str, str], ...] = ()
    arrivals: str = "batch"
    faults: str | None = None
    max_output_tokens: int | None = None
    oracle: bool = False
    profile: str | None = None
    costs: str = "roofline"
    seed: int = 0
    log: str = "off"
    limit: int | None = None
    body: str | None = None

    def __post_init__(self) -> None:
        for name in ("gpus", "gpus_per_node", "max_output_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} is {value}", remedy="give a number of at least 1")
        if self.gpus > MOST_GPUS:
            raise UserError(f"--gpus is {self.gpus}", remedy=f"give at most {MOST_GPUS}")
        if self.arrivals not in ARRIVALS:
            raise UserError(
                f"--arrivals is '{self.arrivals}'", remedy=f"choose one of {', '.join(ARRIVALS)}"
            )
        if self.costs not in COSTS:
            raise UserError(
                f"--costs is '{self.costs}'", remedy=f"choose one of {', '.join(COSTS)}"
            )
        if self.profile is not None and self.costs != COSTS[0]:
            raise UserError(
                f"--profile and --costs {self.costs} are both given", remedy="give one of them"
            )
        if self.log not in LOGS:
            raise UserError(f"--log is '{self.log}'", remedy=f"choose one of {', '.join(LOGS)}")
        if self.gpus_per_node is not None and self.gpus % min(self.gpus_per_node, self.gpus):
            raise UserError(
                f"--gpus {self.gpus} does not fill nodes of --gpus-per-node {self.gpus_per_node}",
                remedy="make the first a multiple of the second",
            )


class Progress(Protocol):
    """Called by a simulator now and then: simulated picoseconds, rows done, rows in the load."""

    def __call__(self, now_ps: int, rows_done: int, rows_total: int) -> None: ...


class Simulate(Protocol):
    """What a simulator offers: `batchgen.sim.run.simulate`. Raises UserError on bad input.

    trace: rows of the job's trace that were read before; None: it reads them. part: these are a
    part of the load, for an estimate, and nobody wants to know what bounds its time.
    """

    def __call__(
        self,
        job: SimJob,
        *,
        progress: Progress | None = None,
        trace: Trace | None = None,
        part: bool = False,
    ) -> RunRecord: ...
