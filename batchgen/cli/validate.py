"""`batchgen validate`: hold the backends against each other. The only command that opens both.
Also the check of an input, which opens neither.

replay     (a) the events of a recorded run through a fresh runtime in a fresh process with another
           hash seed: every action must come again, byte by byte.
agreement  (c) exec on a stub clock that advances by the cost model; sim given the produced lengths:
           identical logs, times included.
input      structure and ids of a file of rows; no model, no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Annotated, Any

import typer

from batchgen.cli.common import parse_names, parse_overrides, say, users_code
from batchgen.cli.endings import in_words
from batchgen.cli.input_file import check_input_file
from batchgen.cli.prediction import prediction
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import ReplayMismatch, UserError
from batchgen.job.folder import logs_in
from batchgen.logfile import PackedLines
from batchgen.oneline import escaped
from batchgen.paths import check_input, kind_of

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
app.command(name="prediction")(prediction)
app.command(name="input")(check_input_file)

PRESETS = "static,orca,vllm,batchgen"
REPLAY_HASH_SEED = "12345"


@app.callback()
def _before_any() -> None:
    """Check runs: replay decisions, compare simulation with execution."""
    calm_threads()


@app.command()
def replay(
    run: Annotated[
        Path, typer.Argument(help="Run directory, folder of a job, or a decisions.jsonl.gz.")
    ],
    fresh: Annotated[
        bool, typer.Option(help="Start a new process with another hash seed (the default).")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, a line for each log.")
    ] = False,
) -> int:
    """(a) Replay decision logs and compare every action."""
    paths = [run]
    if kind_of(run) == "folder":
        paths = logs_in(run) or [run / "decisions.jsonl.gz"]
    for path in paths:
        check_input("log", path, remedy="make the run with --out DIR --log full")
    if not fresh:
        return max(_replay_one(path, as_json=as_json) for path in paths)
    seed = REPLAY_HASH_SEED if os.environ.get("PYTHONHASHSEED") != REPLAY_HASH_SEED else "54321"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    codes = []
    for path in paths:
        command = [sys.executable, "-P", "-m", "batchgen.cli", "validate", "replay", str(path)]
        command += ["--no-fresh", *(["--json"] if as_json else [])]
        codes.append(subprocess.run(command, env=environment, check=False).returncode)
    return max(codes)


def _replay_one(path: Path, *, as_json: bool) -> int:
    """The exit code of a log: 0 if it is equal to its end."""
    from batchgen.replay import replay as replay_lines

    lines = PackedLines(path)
    try:
        report = replay_lines(lines, source=str(path), advisor=_advisor(path))
    except zlib.error as error:
        raise UserError(
            f"{path} is damaged ({error})", remedy="make the run again with --log full"
        ) from None
    except UserError:
        if not (lines.is_cut and lines.num_lines == 1):  # else it is the header of a killed process
            raise
        if as_json:
            print(json.dumps({"schema": 1, "equal": False, "stops_early": True, "events": 0}))
        else:
            say(f"{escaped(path.name)} stops early, before its first decision")
        return 1
    except ReplayMismatch as error:
        if as_json:
            print(json.dumps({"schema": 1, "equal": False, "first_difference": str(error)}))
        else:
            bare = not (path.parent / "run.json").is_file()
            hint = " (no run.json beside the log: changes of layout cannot be replayed)" * bare
            say(f"not equal: {' '.join(str(error).split())}{hint}")
        return 1
    stops_early = report.unfinished_rows > 0 or lines.is_cut
    result: dict[str, Any] = {
        "schema": 1,
        "equal": not stops_early,
        "stops_early": stops_early,
        "backend": report.backend,
        "preset": report.preset,
        "events": report.events,
        "actions": report.actions,
        "unfinished_rows": report.unfinished_rows,
        "hash_seed": os.environ.get("PYTHONHASHSEED", "random"),
    }
    if as_json:
        print(json.dumps(result))
        return 1 if stops_early else 0
    name = escaped(path.name)
    if stops_early:
        why = "its process was killed" if lines.is_cut else "it was cut, or its run did not end"
        say(f"not whole: {name} stops early, with {report.unfinished_rows} rows unfinished: {why}")
    word = "equal so far" if stops_early else "equal"
    text = (
        f"{word}: {report.events} events and {report.actions} actions of {report.preset} on "
        f"{report.backend} came again (hash seed {result['hash_seed']})"
    )
    print(" ".join(text.split()))  # names in a log may hold anything
    return 1 if stops_early else 0


def _advisor(path: Path) -> Any:
    """The cost questions of a simulated run's tail part, rebuilt from its run.json; None for
    exec, and without a run.json."""
    run_json = path.parent / "run.json"
    if not run_json.is_file():
        return None
    try:
        run = json.loads(run_json.read_text(encoding="utf-8"))
        if run["backend"] != "sim":
            return None
        job = run["config"]["job"]
        from batchgen.machine import advisor_of_job

        return advisor_of_job(job)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run_json} is not the run.json of a run ({type(error).__name__}: {error})",
            remedy="give the folder that batchgen sim or exec wrote",
        ) from None


@app.command()
def agreement(
    model: Annotated[Path, typer.Option(help="Hugging Face folder with safetensors.")],
    input_: Annotated[Path, typer.Option("--input", "-i", help="JSONL of prompts.")],
    policies: Annotated[str, typer.Option(help="Presets, with commas between.")] = PRESETS,
    max_tokens: Annotated[int, typer.Option(help="Output budget per row, in tokens.")] = 96,
    hbm_pages: Annotated[
        int | None,
        typer.Option(help="KV pages; default: a third of what the rows need, in small pages."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PART.OPTION=VALUE", help="Change one option; may be repeated."
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Arrivals per pass time of one row; 0: all at once.")
    ] = 0.2,
    cancel: Annotated[
        int, typer.Option(help="Rows to cancel on the way; each cuts the step that it is in.")
    ] = 3,
    gpu: Annotated[str, typer.Option(help="Machine of the cost model.")] = "h100",
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and cancellations.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.")] = None,
    body: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Body of every row.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """(c) The same rows through exec on a stub clock and through sim: logs must be identical, and
    every row must have its output, but for those that are cancelled on the way."""
    if max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}", remedy="give at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}", remedy="give at least 1")
    settings = parse_overrides(overrides or ())
    names = parse_names("--policies", policies)
    from batchgen.cli.agreement import compare_backends

    results = []
    for name in names:
        with users_code():
            result = compare_backends(
                model,
                input_,
                name,
                max_tokens=max_tokens,
                hbm_pages=hbm_pages,
                overrides=settings,
                rate=rate,
                cancel=cancel,
                gpu=gpu,
                seed=seed,
                limit=limit,
                body=body,
            )
        results.append(result)
        if not as_json:
            print(_line(results[-1]))
    if as_json:
        print(json.dumps({"schema": 1, "runs": results}))
    return 0 if all(result["equal"] and result["all_ended"] for result in results) else 1


def _line(result: dict[str, Any]) -> str:
    facts = (
        f"{result['events']} events, {result['cuts']} cuts, {result['preemptions']} preemptions, "
        f"{result['suspensions']} suspensions, of {result['rows']} rows {result['early_ends']} "
        f"ended early and {result['cancelled']} were cancelled, {result['extended']} follow-ups, "
        f"BCT {result['bct_s']:.6f} s"
    )
    if not result["all_ended"]:
        logs = "logs are equal" if result["equal"] else "logs are not equal either"
        words = in_words(result["not_ended"], result["rows"])
        return f"{result['policy']}: {words}; {logs} ({facts})"
    if result["equal"]:
        return f"{result['policy']}: equal, times included ({facts})"
    return f"{result['policy']}: NOT equal at line {result['first_difference']} ({facts})"
