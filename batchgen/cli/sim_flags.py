"""The flags of `batchgen sim`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

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
from batchgen.simjob import LOGS


@dataclass(frozen=True, slots=True, kw_only=True)
class SimFlags:
    """As typer has read them: types hold, nothing else is checked."""

    trace: Annotated[str, typer.Option(help="Trace to run: JSONL, plain or gzip.")]
    model: Model = DEFAULTS["model"]
    gpus: Annotated[int, typer.Option(help="GPUs in the cluster.")] = DEFAULTS["gpus"]
    gpu: Gpu = None
    gpus_per_node: GpusPerNode = None
    cluster: Cluster = None
    layout: Annotated[
        str | None,
        typer.Option(
            help="Parallel layout, or 'rule' for one by rule of thumb; default: the best for each "
            "policy, found by simulating."
        ),
    ] = None
    policy: Annotated[
        str | None, typer.Option(help=f"Preset to run; default: {DEFAULTS['policy']}.")
    ] = None
    compare: Annotated[
        str | None, typer.Option(help="Several presets instead, with commas between.")
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PART.OPTION=VALUE", help="Change one option; may be repeated."
        ),
    ] = None
    arrivals: Arrivals = DEFAULTS["arrivals"]
    faults: Annotated[
        str | None,
        typer.Option(
            "--devices", "--faults", help="Device trace: slow, lost and reclaimed GPUs (JSONL)."
        ),
    ] = None
    without_faults: Annotated[
        bool,
        typer.Option(
            "--without-faults",
            help="Run again without them, and say what they cost; twice the time.",
        ),
    ] = False
    max_output_tokens: MaxOutputTokens = None
    oracle: Oracle = False
    profile: Profile = None
    costs: Costs = DEFAULTS["costs"]
    seed: Seed = DEFAULTS["seed"]
    limit: Limit = None
    body: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Body of every row; default: the stages that the trace has for it.",
        ),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Write run directories DIR/<policy> and plots here.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace run directories that exist.")] = (
        False
    )
    log: Annotated[
        str, typer.Option(metavar="|".join(LOGS), help="Decision log in the run directory.")
    ] = DEFAULTS["log"]
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = (
        False
    )
    progress: Annotated[str, typer.Option(metavar="auto|off", help="Progress on stderr.")] = "auto"
