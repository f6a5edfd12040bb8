"""`batchgen bench`: runs benchmarks/run.py of the checkout, and the benches of truth: `costs`,
`engines`, `silicon`, `published`, `blend`; `bound`, and `tune` for kernels. It measures nothing
itself.

The benchmarks are part of the repository, not of the installed package: their results are committed
beside the code that they measured.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.bench_blend import blend
from batchgen.cli.bench_bound import bound
from batchgen.cli.bench_costs import costs
from batchgen.cli.bench_engines import engines
from batchgen.cli.bench_published import published
from batchgen.cli.bench_silicon import silicon
from batchgen.cli.bench_tune import tune
from batchgen.cli.common import parse_names
from batchgen.errors import UserError
from batchgen.paths import check_result

MEASUREMENTS = (
    *("headline", "coalesced", "rows", "engines", "arrivals"),
    *("roles", "scale", "log", "startup", "traces"),
)
"""Those of benchmarks/run.py."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command(name="blend")(blend)
app.command(name="bound")(bound)
app.command(name="costs")(costs)
app.command(name="engines")(engines)
app.command(name="published")(published)
app.command(name="silicon")(silicon)
app.command(name="tune")(tune)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    only: Annotated[
        str | None,
        typer.Option(help=f"Some of {','.join(MEASUREMENTS)}; default: all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON to write; default: benchmarks/results.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
    python: Annotated[
        bool, typer.Option("--python", help="Measure plain Python, not what 'make compiled' made.")
    ] = False,
) -> int:
    """Measure batchgen's own speed; exit code 1 when a target is missed. `bench costs`: how true
    its costs are; `bench engines`, `silicon` and `published`: its times against measured ones;
    `bench blend`: density-aware order; `bench bound`: what a device allows at most; `bench tune`:
    tile sizes of the kernels on this GPU."""
    if context.invoked_subcommand is not None:
        return 0
    for name in parse_names("--only", only) if only is not None else ():
        if name not in MEASUREMENTS:
            raise UserError(
                f"--only: there is no measurement '{name}'",
                remedy=f"choose from {', '.join(MEASUREMENTS)}",
            )
    if out is not None:
        check_result(out, force=True)
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
    if not script.is_file():
        raise UserError(
            "batchgen bench needs a checkout of the repository",
            remedy="clone it and run 'make bench'",
        )
    command = [sys.executable, str(script)]
    command += ["--only", only] if only is not None else []
    command += ["--out", str(out)] if out is not None else []
    command += ["--json"] if as_json else []
    command += ["--python"] if python else []
    return subprocess.run(command, check=False).returncode
