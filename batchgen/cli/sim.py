"""`batchgen sim`: flags to a `SimJob`, the simulator called, tables and files out; no model here.

The simulator is imported when it is needed, so that `--help` and bad flags cost nothing.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from batchgen.cli.common import (
    parse_names,
    parse_overrides,
    print_runs_json,
    print_table,
    progress_bar,
    say,
    users_code,
)
from batchgen.cli.load_options import (
    DEFAULTS,
    Arrivals,
    Cluster,
    Costs,
    Gpu,
    GpusPerNode,
    Limit,
    MaxOutputTokens,
    Model,
    Oracle,
    Profile,
    Seed,
)
from batchgen.cores import num_cores
from batchgen.errors import UserError
from batchgen.paths import check_input, kind_of
from batchgen.policy.presets import label_of
from batchgen.simjob import LOGS, Progress, SimJob, Simulate

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchgen.report.record import RunRecord

    Run = Callable[[SimJob, Progress | None], RunRecord]

app = typer.Typer(add_completion=False, rich_markup_mode=None)

RULE = "rule"
"""The layout by `batchgen.layout.default_layout` instead of a search."""
MOST_REASONS = 3
"""Failed rows that are named; all are in rows.parquet, and more reasons in run.json."""


def simulator() -> Simulate:
    """The simulator's entry point; loads the backend."""
    return cast(Simulate, import_module("batchgen.sim.run").simulate)


@app.command()
def sim(
    trace: Annotated[str, typer.Option(help="Trace to run: JSONL, plain or gzip.")],
    model: Model = DEFAULTS["model"],
    gpus: Annotated[int, typer.Option(help="GPUs in the cluster.")] = DEFAULTS["gpus"],
    gpu: Gpu = None,
    gpus_per_node: GpusPerNode = None,
    cluster: Cluster = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Parallel layout, or 'rule' for one by rule of thumb; default: the best for each "
            "policy, found by simulating."
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help=f"Preset to run; default: {DEFAULTS['policy']}.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Several presets instead, with commas between.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PART.OPTION=VALUE", help="Change one option; may be repeated."
        ),
    ] = None,
    arrivals: Arrivals = DEFAULTS["arrivals"],
    faults: Annotated[
        str | None,
        typer.Option(
            "--devices", "--faults", help="Device trace: slow, lost and reclaimed GPUs (JSONL)."
        ),
    ] = None,
    without_faults: Annotated[
        bool,
        typer.Option(
            "--without-faults",
            help="Run again without them, and say what they cost; twice the time.",
        ),
    ] = False,
    max_output_tokens: MaxOutputTokens = None,
    oracle: Oracle = False,
    profile: Profile = None,
    costs: Costs = DEFAULTS["costs"],
    seed: Seed = DEFAULTS["seed"],
    limit: Limit = None,
    body: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Body of every row; default: the stages that the trace has for it.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write run directories DIR/<policy> and plots here.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace run directories that exist.")
    ] = False,
    log: Annotated[
        str, typer.Option(metavar="|".join(LOGS), help="Decision log in the run directory.")
    ] = DEFAULTS["log"],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the table.")
    ] = False,
    progress: Annotated[str, typer.Option(metavar="auto|off", help="Progress on stderr.")] = "auto",
) -> int:
    """Simulate a trace on a cluster, under one policy or several."""
    policies = _policies(policy, compare)
    _check_files(trace, faults, profile)
    if without_faults and faults is None:
        raise UserError("--without-faults has nothing to leave out", remedy="add --devices FILE")
    if log != "off" and out is None:
        raise UserError(f"--log {log} has nowhere to go", remedy="add --out DIR")
    if cluster is not None and gpu is not None:
        raise UserError("--gpu and --cluster are both given", remedy="give one of them")
    job = SimJob(
        trace=trace,
        model=model,
        gpu=gpu or DEFAULTS["gpu"],
        cluster=cluster,
        gpus=gpus,
        gpus_per_node=gpus_per_node,
        layout=None if layout == RULE else layout,
        policy=policies[0],
        overrides=parse_overrides(overrides or ()),
        arrivals=arrivals,
        faults=faults,
        max_output_tokens=max_output_tokens,
        oracle=oracle,
        profile=profile,
        costs=costs,
        seed=seed,
        log=log,
        limit=limit,
        body=body,
    )
    runs = Runs(
        job, searched=layout is None, healthy=without_faults, out=out, force=force, how=progress
    )
    summaries = runs.of(policies)
    if as_json:
        print_runs_json(summaries)
    else:
        print_table(summaries)
    return 1 if any(s["failed_rows"] for s in summaries) else 0


def _policies(policy: str | None, compare: str | None) -> tuple[str, ...]:
    """What --policy or --compare names, or the default."""
    if policy is not None and compare is not None:
        raise UserError("--policy and --compare are both given", remedy="give one of them")
    if compare is not None:
        return parse_names("--compare", compare)
    return (policy if policy is not None else DEFAULTS["policy"],)


def _check_files(trace: str, faults: str | None, profile: str | None) -> None:
    """Raises UserError for a file that is not there. A profile may be a folder."""
    check_input("trace", trace, remedy="give a JSONL file, plain or gzip")
    for flag, path in (("--devices", faults), ("--profile", profile)):
        if path is not None and not (path == profile and kind_of(path) == "folder"):
            check_input(flag, path, remedy="give an existing file")


class Runs:
    """Runs of one job under several policies. searched: each in its best layout; healthy: and once
    more without device trouble; out: where run directories go; how: to show progress."""

    def __init__(
        self,
        job: SimJob,
        *,
        searched: bool,
        healthy: bool,
        out: Path | None,
        force: bool,
        how: str,
    ) -> None:
        self.job, self.searched, self.healthy = job, searched, healthy
        self.out, self.force, self.how = out, force, how

    def of(self, policies: tuple[str, ...]) -> list[dict[str, Any]]:
        """Checks the policies, then runs the job under each; the summaries."""
        _check_policies(policies)
        labels = [label_of(name) for name in policies]
        if len(set(labels)) < len(labels):
            raise UserError(
                "--compare names one policy twice", remedy="give files names of their own"
            )
        _check_out(self.out, labels, self.force)
        run = _runner(self.job, searched=self.searched)
        records, summaries = [], []
        for label, policy in zip(labels, policies, strict=True):
            record = self._one(run, policy, label)
            summaries.append(_keep(record, label, self.out, self.force))
            for row, why in list(record.config.get("why_failed", {}).items())[:MOST_REASONS]:
                say(f"{label}: row {row} failed, {why}")
            records.append(record)
        if self.out is not None and len(records) > 1:
            _write_comparison(records, summaries, self.out)
        return summaries

    def _one(self, run: Run, policy: str, label: str) -> RunRecord:
        with users_code(), progress_bar(label, self.how) as callback:
            record = run(replace(self.job, policy=policy), callback)
        if self.searched:
            say(f"{label}: {record.config['layout_reason']}")
        if self.healthy:
            again = replace(self.job, policy=policy, faults=None, log="off")
            if self.searched:  # with the layout and the options that were found
                pairs = tuple((key, text) for key, text in record.config["job"]["overrides"])
                again = replace(again, layout=record.layout, overrides=pairs)
            _run_healthy(again, record, f"{label} without faults", self.how)
        return record


def _run_healthy(job: SimJob, record: RunRecord, label: str, how: str) -> None:
    """Puts beside the times of a run what they are without device trouble, in the same layout."""
    from batchgen.report.metrics import HEALTHY, summary

    with users_code(), progress_bar(label, how) as callback:
        found = summary(simulator()(job, progress=callback))
    record.config["without_faults"] = {name: found[name] for name in HEALTHY}


def _runner(job: SimJob, *, searched: bool) -> Run:
    """What runs a job; searched: in its best layout. The rows are read once for all of them."""
    simulate = simulator()
    if not searched:
        return lambda one, progress: simulate(one, progress=progress)
    from batchgen.layout_search import search
    from batchgen.trace.schema import load

    trace = load(job.trace, max_rows=job.limit)
    return lambda one, progress: search(
        one, simulate, trace, progress=progress, workers=num_cores()
    )


def _check_out(out: Path | None, policies: list[str], force: bool) -> None:
    """Refuse an unusable --out before the first simulation, not after the last."""
    if out is None:
        return
    from batchgen.report.rundir import check_target

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file", remedy="give a folder")
    for name in policies:
        if "/" in name or name in ("", ".", "..", "plots", "compare.json") or len(name) > 100:
            raise UserError(f"policy '{name}' cannot name a folder", remedy="leave out --out")
        check_target(out / name, force=force)


def _check_policies(policies: tuple[str, ...]) -> None:
    """Refuse an unknown policy before the first simulation."""
    from batchgen.policy.presets import find_preset

    with users_code():
        for name in policies:
            find_preset(name)


def _keep(record: RunRecord, name: str, out: Path | None, force: bool) -> dict[str, Any]:
    """Summarise a run and, with --out, write its directory at once: a later failure keeps it."""
    if out is None:
        from batchgen.report.metrics import summary

        return summary(record)
    from batchgen.report.rundir import write_run

    result = write_run(record, out / name, force=force)
    say(f"wrote {out / name}")
    return result


def _write_comparison(records: list[RunRecord], summaries: list[dict[str, Any]], out: Path) -> None:
    from batchgen.cli.common import JSON_SCHEMA
    from batchgen.report.plots import plot_comparison
    from batchgen.report.rundir import write_json

    (out / "plots").mkdir(exist_ok=True)
    plot_comparison(records, out / "plots")
    write_json(out / "compare.json", {"schema": JSON_SCHEMA, "runs": summaries})
    say(f"wrote {out / 'plots'}")
