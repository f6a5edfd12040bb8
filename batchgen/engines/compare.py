"""Simulates recorded runs and tells how far from them it comes. It reads no files of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchgen.engines.recorded import Recorded
from batchgen.report.metrics import summary
from batchgen.report.record import RunRecord
from batchgen.simjob import SimJob, Simulate

METRICS = {
    "bct_s": "makespan",
    "output_tokens_per_s": "output rate",
    "mean_latency_s": "mean end-to-end",
    "mean_tpot_s": "mean TPOT",
    "mean_ttft_s": "mean TTFT",
}
PROFILES, CATALOG = "operator profiles", "catalog alone"
BARS = {
    PROFILES: dict.fromkeys(METRICS, 0.015) | {"mean_ttft_s": 0.03},
    CATALOG: dict.fromkeys(METRICS, 0.10),
}
"""Largest error of each metric, as a fraction of what was measured."""

CATALOG_COSTS = "measured"
"""What `--costs` stands for the second."""

CONSTANTS = ("step_s", "prefill_step_s", "pcie_peer")
"""Of `batchgen.cost.efficiency.Efficiency`; the fourth is the catalog's `intra_latency_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One metric of one run under one source of costs."""

    run: str
    costs: str
    metric: str
    measured: float
    simulated: float
    bar: float

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.simulated / self.measured - 1.0

    @property
    def missed(self) -> bool:
        return not abs(self.error) <= self.bar


def job_of(
    run: Recorded,
    trace: Path,
    *,
    profile: Path | None = None,
    costs: str = "roofline",
    overrides: Sequence[tuple[str, str]] = (),
) -> SimJob:
    """The run as a simulation: vLLM's scheduler, the settings it was started with, its arrivals.

    Its scheduling is asynchronous: a pass is planned while the one before it runs (depth 2).
    """
    settings = run.settings
    plan = {
        "plan.depth": "2",
        "plan.max_num_seqs": str(settings.max_num_seqs),
        "plan.token_budget": str(settings.token_budget),
        "plan.memory_fraction": f"{settings.memory_fraction:g}",
        "plan.prefix_cache": "true" if settings.prefix_cache else "false",
    }
    return SimJob(
        trace=str(trace),
        model=settings.model,
        gpu=settings.gpu,
        gpus=settings.gpus,
        gpus_per_node=settings.gpus,  # such a run is of one machine
        layout=settings.layout,
        policy="vllm",
        arrivals="trace",
        overrides=tuple({**plan, **dict(overrides)}.items()),
        profile=None if profile is None else str(profile),
        costs=costs,
    )


def lines_of(run: Recorded, costs: str, record: RunRecord) -> list[Line]:
    """Every metric of a run beside its simulation."""
    found, measured = summary(record), run.measured()
    return [
        Line(
            run=run.name,
            costs=costs,
            metric=metric,
            measured=measured[metric],
            simulated=float(found[metric]),
            bar=BARS[costs][metric],
        )
        for metric in METRICS
    ]


def errors_of(run: Recorded, record: RunRecord) -> Mapping[str, float]:
    """Signed relative errors by metric."""
    found, measured = summary(record), run.measured()
    return {metric: float(found[metric]) / measured[metric] - 1.0 for metric in METRICS}


def simulate_run(simulate: Simulate, job: SimJob) -> RunRecord:
    """The simulation of a job; rows that fail are no basis of a comparison."""
    from batchgen.errors import UserError

    record = simulate(job)
    failed = int((record.rows["status"] != 0).sum())
    if failed:
        raise UserError(f"{job.trace}: {failed} rows failed in the simulation", code="rows_failed")
    return record
