"""`batchgen bench blend`: BlendServe's four mixes, simulated, beside what its paper says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from batchgen.cli.common import say, tell_result
from batchgen.errors import UserError
from batchgen.paths import aside, check_result
from batchgen.simjob import Simulate

if TYPE_CHECKING:
    from batchgen.catalog.blend import Outcome
    from batchgen.trace.mixes import Rates


def blend(
    rows: Annotated[int, typer.Option(help="Rows of a mix.")] = 40_000,
    video_tokens: Annotated[
        int,
        typer.Option(help="Mean output of a video. The paper has 16384 and about 400,000 rows."),
    ] = 4096,
    only: Annotated[
        str | None, typer.Option(help="One mix, as density:sharing, for instance 1.4:0.35.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the lengths.")] = 0,
    same_overlap: Annotated[
        bool,
        typer.Option(
            "--same-overlap", help="vllm and sglang with blendserve's overlap as well: no bar."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Depth-first order and blendserve against vllm and sglang on mixes of requests that compute
    and requests that read memory; exit code 1 when a bar is missed."""
    from batchgen.catalog.blend import MIXES, OVERLAPPED, SYSTEMS, missed, rates

    if out is not None:
        check_result(out, force=force)
    mixes = MIXES if only is None else (_mix(only),)
    labels = [*SYSTEMS, *(OVERLAPPED if same_overlap else ())]
    machine, outcomes = rates(), []
    for density, sharing in mixes:
        outcomes.append(measure(density, sharing, machine, rows, video_tokens, seed, labels))
    lines = missed(outcomes)
    document = {
        "schema": 1,
        "benchmark": "bench blend",
        "rows": rows,
        "video_tokens": video_tokens,
        "seed": seed,
        "mixes": [
            asdict(one)
            | {
                "of_optimum": one.of_optimum,
                "of_practical": one.of_practical,
                "speedup": one.speedup,
                "order_speedup": one.order_speedup,
                "lost_sharing": one.lost_sharing,
            }
            for one in outcomes
        ],
        "missed": lines,
    }
    return tell_result(document, lambda: _print(outcomes), lines, out=out, as_json=as_json)


def _mix(text: str) -> tuple[float, float]:
    density, _, sharing = text.partition(":")
    try:
        return float(density), float(sharing)
    except ValueError:
        raise UserError(f"--only '{text}' is no mix", remedy="give density:sharing") from None


def measure(
    density: float,
    sharing: float,
    machine: Rates,
    rows: int,
    video_tokens: int,
    seed: int,
    labels: Sequence[str],
) -> Outcome:
    """Systems of these labels on one mix."""
    from batchgen.catalog.blend import THETA, Outcome, job_of
    from batchgen.report.metrics import summary
    from batchgen.trace.mixes import Mix, mix, optimum_s, overlapped_s, shared_tokens
    from batchgen.trace.schema import save

    simulate = cast(Simulate, import_module("batchgen.sim.run").simulate)
    wanted = Mix(
        num_rows=rows, density=density, sharing=sharing, video_tokens=video_tokens, seed=seed
    )
    trace, _ = mix(wanted, machine)
    found = {}
    with aside("mix") as folder:
        path = str(folder / "mix.jsonl")
        save(trace, path)
        for label in labels:
            found[label] = summary(simulate(job_of(label, path), trace=trace, part=True))
            say(f"{label}, density {density:g}, sharing {sharing:g}: {found[label]['bct_s']:.0f} s")
    return Outcome(
        density=density,
        sharing=sharing,
        optimum_s=max(optimum_s(trace, machine)),
        practical_s=overlapped_s(*optimum_s(trace, machine), THETA),
        possible=shared_tokens(trace) / float(trace.prompt_tokens.sum()),
        seconds={label: float(one["bct_s"]) for label, one in found.items()},
        shared={label: float(one["prefix_hit_fraction"]) for label, one in found.items()},
        failed={label: int(one["failed_rows"]) for label, one in found.items()},
    )


def _print(outcomes: Sequence[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table

    from batchgen.catalog.blend import SYSTEMS

    table = Table(title="Mixes of BlendServe, Llama-3-8B on an A100", title_justify="left")
    same = any(one.order_speedup is not None for one in outcomes)
    names = ["DFS / T_o", "/ practical", "speed-up", *["order alone"] * same, "sharing lost"]
    for name in ("mix", "T_o", *SYSTEMS, *names):
        table.add_column(name, justify="right", no_wrap=True)
    for one in outcomes:
        table.add_row(
            f"{one.density:g}, {100 * one.sharing:g} %",
            f"{one.optimum_s:.0f} s",
            *(f"{one.seconds[label]:.0f} s" for label in SYSTEMS),
            f"{one.of_optimum:.3f}",
            f"{one.of_practical:.3f}",
            f"{one.speedup:.2f} x",
            *(() if one.order_speedup is None else (f"{one.order_speedup:.2f} x",)),
            f"{100 * one.lost_sharing:.1f} %",
        )
    Console(width=132, highlight=False).print(table)
