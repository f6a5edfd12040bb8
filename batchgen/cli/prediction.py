"""`batchgen validate prediction` (b): exec on the wall clock against sim with a profile.

The profile comes from another run, on other prompts and lengths. Compared are the batch completion
time, the pass times by kind (the cost model on the very loads that ran) and the peaks of KV memory.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import parse_names, say
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import UserError

if TYPE_CHECKING:
    from batchgen.cost.api import CostModel
    from batchgen.exec.driver import Driver
    from batchgen.exec.run import Prepared

KINDS = ("decode", "mixed", "prefill")
CLOSE = 0.10
"""Policies whose measured times differ by less than this have no order."""


def prediction(
    model: Annotated[Path, typer.Option(help="Hugging Face folder with safetensors.")],
    inputs: Annotated[
        list[Path], typer.Option("--input", "-i", help="JSONL of prompts; may be repeated.")
    ],
    profile: Annotated[Path, typer.Option(help="Profile of this machine and model.")],
    policies: Annotated[str, typer.Option(help="Presets, with commas between.")] = (
        "static,vllm,batchgen"
    ),
    max_tokens: Annotated[int, typer.Option(help="Output budget per row, in tokens.")] = 256,
    hbm_pages: Annotated[int | None, typer.Option(help="KV pages of the device.")] = None,
    repeats: Annotated[int, typer.Option(help="Measured runs per policy; the median counts.")] = 5,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PART.OPTION=VALUE", help="Change one option."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest error of the batch completion time that passes.")
    ] = 0.15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """(b) Predict a real run with a profile: errors of times and memory."""
    calm_threads()
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}", remedy="give at least 1")
    from batchgen.cli.common import parse_overrides

    runs: list[dict[str, Any]] = []
    ordered = True
    for input_ in inputs:
        group = []
        for name in parse_names("--policies", policies):
            result = predict(
                model,
                input_,
                profile,
                name,
                max_tokens=max_tokens,
                hbm_pages=hbm_pages,
                repeats=repeats,
                limit=limit,
                threads=threads,
                overrides=parse_overrides(overrides or ()),
            )
            if not as_json:
                _print(result)
            group.append(result)
        ordered &= orders_agree([(r["measured_bct_s"], r["predicted_bct_s"]) for r in group])
        runs += group
    worst = max(abs(run["bct_error"]) for run in runs)
    if as_json:
        report = {"schema": 1, "runs": runs, "order_agrees": ordered, "worst_bct_error": worst}
        print(json.dumps(report))
    else:
        print(
            f"order of the policies {'agrees' if ordered else 'DIFFERS'}; "
            f"largest error of the batch completion time {worst:.1%}"
        )
    if worst > tolerance:
        say(f"an error of {worst:.1%} is above the tolerance of {tolerance:.0%}")
    return 0 if ordered and worst <= tolerance else 1


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['input']}, {result['policy']}: "
        f"BCT measured {result['measured_bct_s']:.3f} s, predicted "
        f"{result['predicted_bct_s']:.3f} s ({result['bct_error']:+.1%}); "
        f"KV peak {result['measured_kv_peak_pages']} pages, predicted "
        f"{result['predicted_kv_peak_pages']}"
    )
    for kind, entry in result["passes"].items():
        print(
            f"  {kind} passes: {entry['count']}, total {entry['measured_s']:.3f} s, predicted "
            f"{entry['error']:+.1%}; median error of a pass {entry['median_error']:.1%}"
        )


def orders_agree(pairs: list[tuple[float, float]]) -> bool:
    """Whether predicted times order the runs as measured ones do, where those differ enough."""
    return all(
        (left[0] < right[0]) == (left[1] < right[1])
        for index, left in enumerate(pairs)
        for right in pairs[index + 1 :]
        if abs(left[0] - right[0]) > CLOSE * max(left[0], right[0])
    )


def predict(
    model: Path,
    input_: Path,
    profile: Path,
    policy: str,
    *,
    max_tokens: int,
    hbm_pages: int | None = None,
    repeats: int = 1,
    limit: int | None = None,
    threads: int | None = None,
    overrides: tuple[tuple[str, str], ...] = (),
) -> dict[str, Any]:
    """One policy: measured `repeats` times (the run of median time counts), and predicted."""
    import numpy as np

    from batchgen.cost.build import build_cost
    from batchgen.exec.clock import WallClock
    from batchgen.exec.run import ExecJob, drive, prepare
    from batchgen.hardware import load_gpu
    from batchgen.layout import Layout
    from batchgen.model import load_model

    # The GPU only fills a slot of the signature: with a profile no number of it is used.
    cost = build_cost(load_model(str(model)), load_gpu("h100"), Layout(), profile=profile)
    # Attention costs depend on the page size, so the run takes that of the profile.
    if not any(key == "plan.page_tokens" for key, _ in overrides):
        overrides = (*overrides, ("plan.page_tokens", str(_page_tokens(profile))))
    job = ExecJob(
        model=model,
        input=input_,
        output=Path(os.devnull),
        policy=policy,
        overrides=overrides,
        max_tokens=max_tokens,
        hbm_pages=hbm_pages,
        limit=limit,
        threads=threads,
    )
    runs = []
    for _ in range(repeats):
        prepared = prepare(job)
        ran = drive(prepared, WallClock())
        runs.append((int(ran.driver.end_ps.max()), prepared, ran))
    runs.sort(key=lambda run: run[0])
    bct_ps, prepared, ran = runs[len(runs) // 2]
    produced = [len(ran.tokens[row]) for row in range(len(prepared.jobs))]
    predicted_ps, predicted_peak = _simulate(
        prepared, cost, np.maximum(np.array(produced, dtype=np.int32), 1), ran.reasons
    )
    return {
        "input": input_.name,
        "policy": policy,
        "rows": len(produced),
        "output_tokens": int(sum(produced)),
        "measured_bct_s": bct_ps / 1e12,
        "measured_bct_s_all": [run[0] / 1e12 for run in runs],
        "predicted_bct_s": predicted_ps / 1e12,
        "bct_error": predicted_ps / bct_ps - 1,
        "passes": _pass_errors(ran.driver, cost),
        "measured_kv_peak_pages": int(max(ran.driver.steps["kv_pages"], default=0)),
        "predicted_kv_peak_pages": predicted_peak,
    }


def _page_tokens(profile: Path) -> int:
    """The KV page size that a profile (already checked by the reader) was measured with."""
    return int(json.loads(profile.read_text())["model"]["page_tokens"])


def _simulate(
    prepared: Prepared, cost: CostModel, produced: Any, reasons: dict[int, str]
) -> tuple[int, int]:
    from batchgen.sequence import Table
    from batchgen.sim.cluster import Simulation

    table = Table(prepared.table.prompt, prepared.table.budget)
    prepared.table = table
    simulation = Simulation(
        prepared.runtime(), table, prepared.plan, cost, produced, reasons=reasons
    )
    simulation.arrive(list(range(len(table))), 0)
    simulation.close_input(0)
    simulation.run()
    steps = simulation.recorder.steps(cost)
    return int(simulation.recorder.end_ps.max()), int(max(steps["kv_pages"], default=0))


def _pass_errors(driver: Driver, cost: CostModel) -> dict[str, dict[str, float]]:
    """Measured against modelled time of every pass that ran, by kind, with what came before it."""
    import numpy as np

    from batchgen.cost.api import PassLoad

    columns = {name: np.array(values, dtype=np.int64) for name, values in driver.passes.items()}
    load = PassLoad.zeros(1, len(columns["decodes"]))
    load.decodes[0] = columns["decodes"]
    load.context[0] = columns["context"]
    load.chunk_tokens[0] = columns["chunk_tokens"]
    load.chunk_pairs[0] = columns["chunk_pairs"]
    load.chunk_reads[0] = columns["chunk_reads"]
    load.samples[0] = columns["samples"]
    modelled = cost.pass_ps(load).astype(np.float64)
    measured = np.maximum(columns["duration_ps"] + columns["gap_ps"], 1).astype(np.float64)
    chunks, decodes = columns["chunk_tokens"] > 0, columns["decodes"] > 0
    masks = {"decode": ~chunks, "mixed": chunks & decodes, "prefill": chunks & ~decodes}
    return {
        kind: {
            "count": int(masks[kind].sum()),
            "measured_s": float(measured[masks[kind]].sum() / 1e12),
            "error": float(modelled[masks[kind]].sum() / measured[masks[kind]].sum() - 1),
            "median_error": float(
                np.median(np.abs(modelled[masks[kind]] / measured[masks[kind]] - 1))
            ),
        }
        for kind in KINDS
        if masks[kind].any()
    }
