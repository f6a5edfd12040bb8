"""The flags of `batchgen plan`."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFlags:
    """As typer has read them: types and given ranges hold, nothing else is checked."""

    trace: Annotated[str, typer.Option(help="Load to plan for: JSONL, plain or gzip.")]
    model: Model = DEFAULTS["model"]
    gpus: Annotated[
        int, typer.Option(help="GPUs in the cluster; with --deadline the most there may be.")
    ] = DEFAULTS["gpus"]
    gpu: Gpu = None
    gpus_per_node: GpusPerNode = None
    cluster: Cluster = None
    deadline: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Find the cheapest cluster that ends by then: 90s, 45min, 2h, 1d.",
        ),
    ] = None
    among: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="GPUs and clusters that --deadline considers; default: the whole catalog.",
        ),
    ] = None
    prices: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="NAME=USD", help="Price of a GPU-hour; may be repeated."),
    ] = None
    policy: Annotated[str, typer.Option(help="Preset to plan for.")] = DEFAULTS["policy"]
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PART.OPTION=VALUE",
            help="Fix one option; what is set of the plan is not searched.",
        ),
    ] = None
    arrivals: Arrivals = DEFAULTS["arrivals"]
    max_output_tokens: MaxOutputTokens = None
    oracle: Oracle = False
    profile: Profile = None
    costs: Costs = DEFAULTS["costs"]
    seed: Seed = DEFAULTS["seed"]
    limit: Limit = None
    body: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Body of every row."),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes; default: one per core.")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False
    progress: Annotated[str, typer.Option(metavar="auto|off", help="Progress on stderr.")] = "auto"
