"""`batchgen bench engines`: real runs of vLLM, replayed in the simulator, beside the measured; then
`bench silicon`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from batchgen.cli.bench_silicon import against_silicon
from batchgen.cli.common import say, tell_result
from batchgen.errors import UserError
from batchgen.paths import aside, check_result, write_whole

if TYPE_CHECKING:
    from batchgen.engines.compare import Line
    from batchgen.engines.recorded import Recorded
    from batchgen.report.record import RunRecord
    from batchgen.simjob import Simulate

SHIPPED = Path(__file__).resolve().parents[2] / "traces" / "engines"
PICTURE = "engines.png"


def engines(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of recorded runs (docs/engines.md); default: what is shipped."),
    ] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(help="Folder of operator profiles; default: DATA/op_profiles."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PART.OPTION=VALUE", help="Change one option; may be repeated."
        ),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Also without one term of the model at a time.")
    ] = False,
    plots: Annotated[Path | None, typer.Option(help=f"Folder for {PICTURE}, made anew.")] = None,
    factors: Annotated[
        Path | None,
        typer.Option(
            help="Write what kernels of the profiled GPUs take beside the fits of others (what is "
            "shipped as batchgen/catalog/offsets.json), and nothing else."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Replay recorded runs of vLLM in the simulator, then `bench silicon` unless --data names other
    runs; exit code 1 when an error is above its bar."""
    if out is not None:
        check_result(out, force=force)
    if factors is not None:
        check_result(factors, force=force)
    if plots is not None:
        if plots.exists() and not plots.is_dir():
            raise UserError(f"--plots {plots} is a file", remedy="give a folder")
        plots.mkdir(parents=True, exist_ok=True)
    if data is None and not SHIPPED.is_dir():
        raise UserError(
            "the recorded runs are in a checkout of the repository",
            remedy="clone it, or give --data DIR",
        )
    from batchgen.cli.common import parse_overrides
    from batchgen.engines.recorded import find_recorded

    source = SHIPPED if data is None else data
    tables = source / "op_profiles" if profiles is None else profiles
    runs = find_recorded(source) if factors is None else []
    if not tables.is_dir():
        if profiles is not None or factors is not None:
            raise UserError(f"{tables} is no folder", remedy="give a folder of operator profiles")
        say(f"{tables} is no folder: from the catalog alone")
    if factors is not None:
        return _write_factors(tables, factors)
    given = parse_overrides(overrides or ())
    simulate = cast("Simulate", import_module("batchgen.sim.run").simulate)
    found, ablations = _replay(runs, tables, given, simulate, ablate)
    lines = [line for _, _, lines in found for line in lines]
    document = _document(runs, lines, found, ablations, given)
    missed = [
        f"{line.run}, {line.costs}: {line.metric} is off by {_percent(line.error)}"
        for line in lines
        if line.missed
    ]
    show_silicon = None
    if data is None:
        document["silicon"], show_silicon, more = against_silicon()
        document["rows"] += _silicon_residuals(document["silicon"])
        missed += more
    if plots is not None:
        from batchgen.engines.curves import draw

        say(f"wrote {draw([(run, records) for run, records, _ in found], plots / PICTURE)}")

    def show() -> None:
        _print(lines, ablations)
        if show_silicon is not None:
            show_silicon()

    return tell_result(document, show, missed, out=out, as_json=as_json)


Ablations = dict[str, dict[str, dict[str, float]]]
"""By run and term: errors by metric."""


def _residuals(runs: Sequence[Recorded], lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Errors of all metrics by costs and GPU, for `benchmarks/residuals.py`."""
    from batchgen.cost.residuals import spread_of
    from batchgen.engines.compare import CATALOG, PROFILES

    gpus = {run.name: run.settings.gpu for run in runs}
    kinds = {PROFILES: "engine profile", CATALOG: "measured"}
    groups: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        groups.setdefault((kinds[line.costs], gpus[line.run]), []).append(line.error)
    return [
        {
            "what": "makespan, rates and latencies of recorded runs",
            "costs": costs,
            "gpu": gpu,
            "engine": "vllm",
            "errors": spread_of(errors),
        }
        for (costs, gpu), errors in groups.items()
    ]


def _silicon_residuals(silicon: dict[str, Any]) -> list[dict[str, Any]]:
    """Errors of inter-token times: of all, by GPU, by engine."""
    keys = {"all": "", "GPU": "gpu", "engine": "engine"}
    without = silicon["gpus_without_tables"]
    return [
        {
            "what": "time per token of a closed loop",
            "costs": "measured",
            **({keys[table["table"]]: table["name"]} if keys[table["table"]] else {}),
            "guessed": table["name"] in without,
            "errors": {"count": table["count"]}
            | {key: table["errors"]["physics"][key] for key in ("median", "p90")},
        }
        for table in silicon["tables"]
        if table["table"] in keys
    ]


def _write_factors(tables: Path, target: Path) -> int:
    from batchgen.engines.offsets import factors

    document = {"made_by": "batchgen bench engines --data DIR --factors FILE"}
    text = json.dumps(document | {"factors": factors(tables)}, indent=1)
    write_whole(target, f"{text}\n".encode())
    say(f"wrote {target}")
    return 0


def _replay(
    runs: Sequence[Recorded],
    profile: Path,
    given: Sequence[tuple[str, str]],
    simulate: Simulate,
    ablate: bool,
) -> tuple[list[tuple[Recorded, dict[str, RunRecord], list[Line]]], Ablations]:
    from batchgen.engines.ablate import TERMS, write_without
    from batchgen.engines.compare import (
        CATALOG,
        CATALOG_COSTS,
        PROFILES,
        errors_of,
        job_of,
        lines_of,
        simulate_run,
    )
    from batchgen.trace.write import save

    found: list[tuple[Recorded, dict[str, RunRecord], list[Line]]] = []
    ablations: Ablations = {}
    with aside("engines") as scratch:
        for run in runs:
            trace = scratch / f"{run.name}.jsonl"
            save(run.trace, trace, force=True)
            records: dict[str, RunRecord] = {}
            lines: list[Line] = []
            try:
                if profile.is_dir():
                    job = job_of(run, trace, profile=profile, overrides=given)
                    records[PROFILES] = simulate_run(simulate, job)
            except UserError as error:
                if error.code != "no_profile":
                    raise
                say(f"{run.name}: {error}")
            job = job_of(run, trace, costs=CATALOG_COSTS, overrides=given)
            records[CATALOG] = simulate_run(simulate, job)
            for costs, record in records.items():
                lines += lines_of(run, costs, record)
            found.append((run, records, lines))
            if not ablate or PROFILES not in records:
                continue
            ablations[run.name] = {"nothing": dict(errors_of(run, records[PROFILES]))}
            for number, (term, changed, tables) in enumerate(TERMS):
                folder = profile
                if tables is not None:
                    folder = scratch / f"{number}"
                    if not folder.exists():
                        write_without(tables, profile, folder)
                job = job_of(run, trace, profile=folder, overrides=(*given, *changed))
                ablations[run.name][term] = dict(errors_of(run, simulate_run(simulate, job)))
    return found, ablations


def _document(
    runs: Sequence[Recorded],
    lines: Sequence[Line],
    found: Sequence[tuple[Recorded, dict[str, RunRecord], list[Line]]],
    ablations: Ablations,
    given: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    records = [
        (run.name, costs, record) for run, each, _ in found for costs, record in each.items()
    ]
    return {
        "schema": 1,
        "benchmark": "bench engines",
        "runs": [
            {"name": run.name, "requests": len(run.trace), "workload": run.workload}
            | asdict(run.settings)
            for run in runs
        ],
        "overrides": [list(pair) for pair in given],
        "rows": _residuals(runs, lines),
        "lines": [asdict(line) | {"error": line.error, "missed": line.missed} for line in lines],
        "simulations": [
            {
                "run": name,
                "costs": costs,
                "cost": {k: v for k, v in record.config["cost"].items() if k != "profile"},
                "kv_pages": record.config["capacity"]["hbm_pages"],
                "wall_s": record.wall_s,
            }
            for name, costs, record in records
        ],
        "without": ablations,
        "missed": sum(line.missed for line in lines),
    }


def _percent(value: float) -> str:
    return f"{100 * value:+.2f}%"


def _print(lines: Sequence[Line], ablations: Ablations) -> None:
    from rich.console import Console
    from rich.table import Table

    from batchgen.engines.compare import METRICS

    console = Console(width=130, highlight=False)
    table = Table(title="Real runs of vLLM and their simulation", title_justify="left")
    for name in ("run", "costs", "metric"):
        table.add_column(name, no_wrap=True)
    for name in ("measured", "simulated", "error", "bar"):
        table.add_column(name, justify="right")
    for line in lines:
        rate = line.metric.endswith("per_s")
        values = (
            f"{x:,.0f} /s" if rate else f"{x:,.4g} s" for x in (line.measured, line.simulated)
        )
        table.add_row(
            line.run,
            line.costs,
            METRICS[line.metric],
            *values,
            _percent(line.error) + (" !" if line.missed else ""),
            f"{100 * line.bar:g}%",
        )
    console.print(table)
    for run, terms in ablations.items():
        table = Table(title=f"{run}: errors without one term", title_justify="left")
        table.add_column("without", no_wrap=True)
        for name in METRICS.values():
            table.add_column(name, justify="right")
        for term, errors in terms.items():
            table.add_row(term, *(_percent(errors[metric]) for metric in METRICS))
        console.print(table)
