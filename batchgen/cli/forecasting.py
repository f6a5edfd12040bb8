"""What the simulator thinks of a job of the executor: its rows, plan and policy, times from a
`TimeSource`. Only the command line knows both backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from batchgen.cli.time_source import TimeSource, of_profile
from batchgen.errors import UserError
from batchgen.job.forecast import Forecast, forecast_of
from batchgen.report.text import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchgen.exec.job import ExecJob
    from batchgen.plan import Plan
    from batchgen.runtime.core import Runtime
    from batchgen.sequence import Table


class Planned(Protocol):
    """A job that is ready to be simulated: `batchgen.exec.prepare.Prepared` and
    `batchgen.exec.survey.Survey`. `produced` [rows]: tokens of an earlier process."""

    job: ExecJob
    folder: Path  # of the model

    @property
    def plan(self) -> Plan | None: ...

    @property
    def produced(self) -> Sequence[int] | None: ...

    def fresh_table(self) -> Table: ...

    def runtime(self, *, table: Table) -> Runtime: ...


def check_prediction(
    profile: Path | None, gpu: str | None, *, body: str | None, dry_run: bool
) -> None:
    """Refuse before the model is loaded what is no profile, and no GPU of the catalog."""
    from batchgen.cost.profile import load_profile
    from batchgen.hardware import load_gpu

    if gpu is not None:
        load_gpu(gpu)
        if profile is not None or not dry_run:
            why = "--profile and --gpu exclude each other" if profile else "--gpu only predicts"
            raise UserError(why, remedy="leave --gpu out" if profile else "add --dry-run")
        if body is not None:
            raise UserError(
                "--gpu and --body: nobody knows what a body will ask for", remedy="leave one out"
            )
    if profile is None:
        return
    load_profile(profile)
    if body is not None:
        raise UserError(
            "--profile and --body: nobody knows what a body will ask for", remedy="leave one out"
        )


def forecast(planned: Planned, times: TimeSource, expected_tokens: int | None) -> Forecast:
    """Simulates the job. `expected_tokens`: what rows produce that may produce more; None: every
    row produces all it may."""
    import numpy as np

    from batchgen.sim.cluster import Simulation

    plan, cost = planned.plan, times.cost
    assert plan is not None
    table = planned.fresh_table()
    lengths = table.budget.astype(np.int64)
    guess = "every row produces its max_tokens"
    if expected_tokens is not None:
        guess = f"rows stop after {expected_tokens} tokens"
        lengths = np.minimum(lengths, expected_tokens)
        if planned.produced is not None:
            lengths = np.maximum(lengths, np.array(planned.produced) + 1)
    simulation = Simulation(planned.runtime(table=table), table, plan, cost, lengths)
    simulation.arrive(list(range(len(table))), 0)
    simulation.close_input(0)
    simulation.run()
    steps = simulation.recorder.steps(cost)
    return forecast_of(
        simulation.recorder.end_ps,
        steps["start_ps"] + steps["duration_ps"],
        steps["output_tokens"],
        kv_peak_pages=int(max(steps["kv_pages"], default=0)),
        guess=guess,
        spread=times.spread,
    )


def predictor(
    profile: Path, expected_tokens: int | None, say: Callable[[str], None]
) -> Callable[[Planned], Forecast]:
    """`forecast` of a job that is about to run; says what it says."""

    def predict(planned: Planned) -> Forecast:
        times = of_profile(planned, profile)
        for line in times.notes:
            say(f"note: {line}")
        found = forecast(planned, times, expected_tokens)
        say(f"the simulator says {duration(found.total_s)}, if {found.guess}")
        return found

    return predict


def differences(planned: Planned, profile: Path) -> list[str]:
    """In what the profile was measured otherwise than the job runs, one line each."""
    document: dict[str, Any] = json.loads(profile.read_text(encoding="utf-8"))
    job, plan = planned.job, planned.plan
    machine = document.get("machine") if isinstance(document.get("machine"), dict) else {}
    model = document.get("model") if isinstance(document.get("model"), dict) else {}
    assert machine is not None
    assert model is not None
    ours = {
        "device": (machine.get("device"), job.device),
        "dtype": (machine.get("dtype"), job.dtype),
        "threads": (machine.get("threads"), job.threads),
        "page_tokens": (model.get("page_tokens"), None if plan is None else plan.page_tokens),
    }
    return [
        f"{profile} was measured with {name} {then}, the job runs with {now}: expect errors"
        for name, (then, now) in ours.items()
        if then is not None and now is not None and then != now
    ]
