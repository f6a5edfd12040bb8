"""`batchgen validate`: hold the backends against each other. The only command that opens both.

replay     (a) the events of a recorded run through a fresh runtime in a fresh process with another
           hash seed: every action must come again, byte by byte.
agreement  (c) exec on a stub clock that advances by the cost model; sim given the produced lengths:
           identical logs, times included.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import parse_names, say
from batchgen.errors import ReplayMismatch, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

PRESETS = "static,orca,vllm,batchgen"
REPLAY_HASH_SEED = "12345"


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="Run directory, or its decisions.jsonl.gz.")],
    fresh: Annotated[
        bool, typer.Option(help="Start a new process with another hash seed (the default).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """(a) Replay a decision log and compare every action."""
    path = run / "decisions.jsonl.gz" if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{path} does not exist", remedy="make the run with --out DIR --log full")
    if fresh:
        seed = REPLAY_HASH_SEED if os.environ.get("PYTHONHASHSEED") != REPLAY_HASH_SEED else "54321"
        command = [sys.executable, "-m", "batchgen.cli", "validate", "replay", str(path)]
        command += ["--no-fresh", *(["--json"] if as_json else [])]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(command, env=environment, check=False).returncode
    from batchgen.replay import replay as replay_lines

    result: dict[str, Any]
    try:
        with gzip.open(path, "rb") as lines:
            report = replay_lines(lines, source=str(path), advisor=_advisor(path))
    except gzip.BadGzipFile:
        raise UserError(
            f"{path} is not gzip", remedy="give the decisions.jsonl.gz of a run"
        ) from None
    except ReplayMismatch as error:
        if as_json:
            print(json.dumps({"schema": 1, "equal": False, "first_difference": str(error)}))
        else:
            say(f"not equal: {error}")
        return 1
    result = {
        "schema": 1,
        "equal": True,
        "backend": report.backend,
        "preset": report.preset,
        "events": report.events,
        "actions": report.actions,
        "hash_seed": os.environ.get("PYTHONHASHSEED", "random"),
    }
    if as_json:
        print(json.dumps(result))
    else:
        print(
            f"equal: {report.events} events and {report.actions} actions of {report.preset} on "
            f"{report.backend} came again (hash seed {result['hash_seed']})"
        )
    return 0


def _advisor(path: Path) -> Any:
    """The cost questions of a simulated run's tail part, rebuilt from its run.json; None for
    exec."""
    run_json = path.parent / "run.json"
    if not run_json.is_file():
        return None
    config = json.loads(run_json.read_text()).get("config", {})
    job = config.get("job", {})
    if "gpus" not in job:
        return None
    from batchgen.sim.run import advisor_of_job

    return advisor_of_job(job)


@app.command()
def agreement(
    model: Annotated[Path, typer.Option(help="Hugging Face folder with safetensors.")],
    input_: Annotated[Path, typer.Option("--input", "-i", help="JSONL of prompts.")],
    policies: Annotated[str, typer.Option(help="Presets, with commas between.")] = PRESETS,
    max_tokens: Annotated[int, typer.Option(help="Output budget per row, in tokens.")] = 96,
    hbm_pages: Annotated[
        int | None, typer.Option(help="KV pages; default: a third of what the rows need at most.")
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Arrivals per pass time of one row; 0: all at once.")
    ] = 0.2,
    gpu: Annotated[str, typer.Option(help="Machine of the cost model.")] = "h100",
    seed: Annotated[int, typer.Option(help="Seed of the arrival times.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """(c) The same rows through exec on a stub clock and through sim: logs must be identical."""
    results = []
    for name in parse_names("--policies", policies):
        results.append(
            compare_backends(
                model,
                input_,
                name,
                max_tokens=max_tokens,
                hbm_pages=hbm_pages,
                rate=rate,
                gpu=gpu,
                seed=seed,
                limit=limit,
            )
        )
        if not as_json:
            print(_line(results[-1]))
    if as_json:
        print(json.dumps({"schema": 1, "runs": results}))
    return 0 if all(result["equal"] for result in results) else 1


def _line(result: dict[str, Any]) -> str:
    facts = (
        f"{result['events']} events, {result['cuts']} cuts, {result['preemptions']} preemptions, "
        f"{result['suspensions']} suspensions, {result['early_ends']} of {result['rows']} rows "
        f"ended early, BCT {result['bct_s']:.6f} s"
    )
    if result["equal"]:
        return f"{result['policy']}: equal, times included ({facts})"
    return f"{result['policy']}: NOT equal at line {result['first_difference']} ({facts})"


def compare_backends(
    model: Path,
    input_: Path,
    policy: str,
    *,
    max_tokens: int = 96,
    hbm_pages: int | None = None,
    rate: float = 0.2,
    gpu: str = "h100",
    seed: int = 0,
    limit: int | None = None,
    overrides: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Both backends on the same rows, arrivals and cost; a dict that says whether the logs
    agree."""
    import numpy as np

    from batchgen.cost.build import build_cost
    from batchgen.exec.run import ExecJob, clocked, prepare
    from batchgen.hardware import load_gpu
    from batchgen.layout import Layout
    from batchgen.memory.pool import pages_for
    from batchgen.model import load_model
    from batchgen.sequence import Table
    from batchgen.sim.cluster import Simulation
    from batchgen.sim.run import schedule_arrivals

    def job(pages: int | None) -> ExecJob:
        return ExecJob(
            model=model,
            input=input_,
            output=Path(os.devnull),
            policy=policy,
            overrides=tuple(overrides),
            max_tokens=max_tokens,
            limit=limit,
            hbm_pages=pages,
            seed=seed,
        )

    cost = build_cost(load_model(model), load_gpu(gpu), Layout())
    prepared = prepare(job(hbm_pages))
    if hbm_pages is None:
        page = prepared.plan.page_tokens
        worst = prepared.table.prompt + prepared.table.budget
        pages = [pages_for(int(tokens), page) for tokens in worst]
        prepared = prepare(job(max(sum(pages) // 3, max(pages) + 1)))
    num_rows = len(prepared.table)
    arrivals = np.zeros(num_rows, dtype=np.int64)
    if rate > 0:
        gap_ps = cost.pass_one_ps(1, int(prepared.table.prompt.mean()), samples=1) / rate
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(gap_ps, num_rows)).astype(np.int64)
        arrivals -= arrivals[0]
    ran, exec_log = clocked(prepared, cost, arrivals_ps=arrivals.tolist())

    table = Table(prepared.table.prompt, prepared.table.budget)
    sim_log = prepared.log()
    produced = np.array([len(ran.tokens[row]) for row in range(num_rows)], dtype=np.int32)
    prepared.table = table
    simulation = Simulation(
        prepared.runtime(),
        table,
        prepared.plan,
        cost,
        np.maximum(produced, 1),
        reasons=ran.reasons,
        observer=sim_log,
    )
    schedule_arrivals(simulation, arrivals)
    simulation.run()
    executed, simulated = list(exec_log.lines()), list(sim_log.lines())
    first = next(
        (
            number
            for number, (left, right) in enumerate(zip(executed, simulated, strict=False), start=1)
            if left != right
        ),
        None if len(executed) == len(simulated) else min(len(executed), len(simulated)) + 1,
    )
    text = "\n".join(executed)
    return {
        "policy": policy,
        "equal": first is None,
        "first_difference": first,
        "rows": num_rows,
        "events": len(executed) - 1,
        "cuts": text.count('"ended_by":"cut"'),
        "preemptions": int(table.preemptions.sum()),
        "suspensions": int(table.suspensions.sum()),
        "early_ends": sum(reason == "stop" for reason in ran.reasons.values()),
        "bct_s": float(simulation.recorder.end_ps.max()) / 1e12,
        "tokens": int(produced.sum()),
        "exec_line": executed[first - 1] if first and first <= len(executed) else None,
        "sim_line": simulated[first - 1] if first and first <= len(simulated) else None,
    }
