"""Options that say what is simulated, the same for `sim` and `plan`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchgen.simjob import ARRIVALS, COSTS, SimJob

DEFAULTS: dict[str, Any] = {
    name: field.default for name, field in SimJob.__dataclass_fields__.items()
}

Model = Annotated[str, typer.Option(help="Catalog name, or a folder with a config.json.")]
Gpu = Annotated[
    str | None, typer.Option(help=f"Catalog name of the GPU; default: {DEFAULTS['gpu']}.")
]
GpusPerNode = Annotated[
    int | None, typer.Option(help="GPUs that share a host; default: the catalog's node.")
]
Cluster = Annotated[
    str | None, typer.Option(help="Machines of the catalog, or of a .yaml file, instead of --gpu.")
]
Arrivals = Annotated[
    str,
    typer.Option(
        metavar="|".join(ARRIVALS), help="All rows at once, or at the times of the trace."
    ),
]
MaxOutputTokens = Annotated[
    int | None,
    typer.Option(help="Output budget of rows without one; default: the trace's maximum."),
]
Oracle = Annotated[bool, typer.Option("--oracle", help="Let the policy see true output lengths.")]
Profile = Annotated[
    str | None,
    typer.Option(help="Profile of 'batchgen profile', or a folder of operator profiles."),
]
Costs = Annotated[
    str,
    typer.Option(
        metavar="|".join(COSTS), help="Times of passes: a roofline, or sums of measured kernels."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.")]
Limit = Annotated[int | None, typer.Option(help="Only the first rows of the trace.")]
