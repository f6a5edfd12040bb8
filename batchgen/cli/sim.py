"""`batchgen sim`: flags to a `SimJob`, the simulator called, tables and files out; no model here.

The simulator is imported when it is needed, so that `--help` and bad flags cost nothing.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from batchgen.cli.asked import check_machines, of_load
from batchgen.cli.common import (
    parse_names,
    print_runs_json,
    print_table,
    progress_bar,
    say,
    users_code,
)
from batchgen.cli.load_options import DEFAULTS
from batchgen.cli.options import command
from batchgen.cli.sim_flags import SimFlags
from batchgen.cores import num_cores
from batchgen.errors import UserError
from batchgen.paths import check_input, kind_of
from batchgen.policy.presets import label_of
from batchgen.simjob import Progress, SimJob, Simulate

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


@command(app, SimFlags)
def sim(asked: SimFlags) -> int:
    """Simulate a trace on a cluster, under one policy or several."""
    policies = _policies(asked.policy, asked.compare)
    _check_files(asked.trace, asked.faults, asked.profile)
    if asked.without_faults and asked.faults is None:
        raise UserError("--without-faults has nothing to leave out", remedy="add --devices FILE")
    if asked.log != "off" and asked.out is None:
        raise UserError(f"--log {asked.log} has nowhere to go", remedy="add --out DIR")
    check_machines(asked)
    job = SimJob(
        **of_load(asked),
        layout=None if asked.layout == RULE else asked.layout,
        policy=policies[0],
        faults=asked.faults,
        log=asked.log,
    )
    runs = Runs(
        job,
        searched=asked.layout is None,
        healthy=asked.without_faults,
        out=asked.out,
        force=asked.force,
        how=asked.progress,
    )
    summaries = runs.of(policies)
    if asked.as_json:
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
