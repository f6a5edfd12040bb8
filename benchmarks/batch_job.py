"""Time what a batch job costs beside its tokens: reading rows, the journal, looks at how it goes.

    python benchmarks/batch_job.py [--only validate|journal|watch|log] [--rows N] [--output PATH]

Prints one JSON object.

validate: `batchgen validate input` over a file of `--rows` rows of 200 bytes, in a process of its
own: seconds of the clock and of the processor, the most memory it had, whether torch was loaded.

journal: a null engine that gives 1,000 rows a second (it counts in Python, which a writer's thread
disturbs most; an answer has 1,000 bytes) for 5 s, once with the journal on the disk and once in
memory, in turns; the end of the journal is part of it, and stands beside it. `overhead` is the
median of the first over that of the second, less one; `most_rows_per_s` what the journal takes when
nothing else is done.

watch: one look at a table of `--rows` sequences, one estimate of what is left, and the part of a
run that they take with the rests between them.

log: a job of 100 short rows and 16 tokens on `models/sums-moe`, without a decision log, with the
one that every job's folder has, and with `--log full` in memory too, in turns.
`processor_overhead` is the median of the ratios of neighbours less one, of processor time; beside
it the size of a log per row.

Other programs stretch all times: `load_average` says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

ROW_BYTES = 200
ROWS_PER_S = 1000
TURN_ROWS = 5000
TURNS = 5
LOG_ROWS = 100
ROOT = Path(__file__).parents[1]
TARGETS = {
    "validate": {"wall_s": 30.0, "peak_bytes": 300_000_000},
    "journal": {"overhead": 0.05},
    "watch": {"part_of_run": 0.01},
    "log": {"processor_overhead": 0.02},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error("rows must be at least 1")
    before = os.getloadavg()[0]
    parts: dict[str, Callable[[int], dict[str, Any]]] = {
        "validate": validate,
        "journal": lambda rows: journal(),
        "watch": watch,
        "log": lambda rows: decisions(),
    }
    result = {
        "benchmark": "batch_job",
        "machine": machine.describe(),
        "commit": machine.commit(),
        "load_average": [before],
        "rows": options.rows,
        "targets": TARGETS,
        **{
            name: measure(options.rows)
            for name, measure in parts.items()
            if options.only in (None, name)
        },
    }
    result["load_average"].append(os.getloadavg()[0])
    machine.publish(result, options.output)
    return 0


# -- rows -----------------------------------------------------------------------------------------

CHILD = """
import sys
from batchgen.cli import main
code = main(["validate", "input", sys.argv[1], "--json"])
sys.exit(9 if "torch" in sys.modules else code)
"""


def validate(rows: int) -> dict[str, Any]:
    """Rows of a chat each, with ids and texts of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(rows):
                file.write(row_of(number) + "\n")
        size = path.stat().st_size
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, str(path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        told = json.loads(child.stdout.read())
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 9) or told["rows"] != rows:
        raise RuntimeError(f"exit code {child.returncode}, {told['rows']} rows of {rows}")
    return {
        "rows": rows,
        "bytes": size,
        "wall_s": wall_s,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "loads_torch": child.returncode == 9,
    }


def row_of(number: int) -> str:
    """A row of ROW_BYTES with its newline."""
    message = {"role": "user", "content": ""}
    row = {
        "custom_id": f"request-{number:09d}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [message], "max_tokens": 64},
    }
    room = ROW_BYTES - 1 - len(json.dumps(row))
    message["content"] = (f"word {number} " * 40)[:room]
    return json.dumps(row)


# -- the journal ----------------------------------------------------------------------------------


def journal() -> dict[str, Any]:
    """Times in seconds."""
    from batchgen.job.journal import Journal

    line = b"x" * 1000
    loops = _loops_of(1 / ROWS_PER_S)
    times: dict[str, list[float]] = {"disk": [], "memory": []}
    processor: dict[str, list[float]] = {"disk": [], "memory": []}
    ends: dict[str, list[float]] = {"disk": [], "memory": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(TURNS + 1):
            for name in ("disk", "memory") if number % 2 else ("memory", "disk"):
                path = Path(folder) / f"{number}.sqlite" if name == "disk" else Path(":memory:")
                began, used = time.perf_counter(), time.process_time()
                with Journal(path) as one:
                    for row in range(TURN_ROWS):
                        _count(loops)
                        one.answer(row, line)
                    ended = time.perf_counter()
                    one.sync()
                if number:  # the first is for what is new
                    times[name].append(time.perf_counter() - began)
                    ends[name].append(time.perf_counter() - ended)
                    processor[name].append(time.process_time() - used)
        began = time.perf_counter()
        with Journal(Path(folder) / "most.sqlite") as one:
            for row in range(4 * TURN_ROWS):
                one.answer(row, line)
            one.sync()
        most = 4 * TURN_ROWS / (time.perf_counter() - began)
    middle = {name: statistics.median(values) for name, values in times.items()}
    used_s = {name: statistics.median(values) for name, values in processor.items()}
    return {
        "rows": TURN_ROWS,
        "turns": TURNS,
        "rows_per_s": TURN_ROWS / middle["memory"],
        "times_s": times,
        "end_s": {name: statistics.median(values) for name, values in ends.items()},
        "overhead": middle["disk"] / middle["memory"] - 1,
        "overhead_of_best": min(times["disk"]) / min(times["memory"]) - 1,
        "processor_overhead": used_s["disk"] / used_s["memory"] - 1,
        "most_rows_per_s": most,
    }


def _count(loops: int) -> int:
    found = 0
    for number in range(loops):
        found += number & 7
    return found


def _loops_of(seconds: float) -> int:
    """So many loops take so long, at the best of some tries."""
    loops, best = 10_000, float("inf")
    for _ in range(200):
        began = time.perf_counter()
        _count(loops)
        best = min(best, time.perf_counter() - began)
    return max(1, round(loops * seconds / best))


# -- looking --------------------------------------------------------------------------------------


def watch(rows: int) -> dict[str, Any]:
    """Of a table in the middle of a run: half has ended, 256 decode, the rest waits."""
    import numpy as np

    from batchgen.exec.watching import EVERY_S, LEAST_REST
    from batchgen.job.load import load_of, places_of
    from batchgen.job.pace import Pace, left_s
    from batchgen.sequence import Status, Table

    rng = np.random.default_rng(0)
    table = Table(rng.integers(20, 2000, rows, dtype=np.int32), np.full(rows, 1024, dtype=np.int32))
    half = rows // 2
    table.status[:half] = Status.DONE
    table.produced[:half] = np.minimum(rng.exponential(200, half).astype(np.int32) + 1, 1024)
    running = slice(half, min(half + 256, rows))
    table.status[running] = Status.DECODE
    table.offset[running] = table.prompt[running]
    table.status[running.stop :] = Status.WAITING
    pace = Pace()
    pace.tell([256] * 50, [0] * 50, [0.02] * 50)

    def timed(call: Callable[[], object]) -> float:
        found = []
        for _ in range(7):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    look_s = timed(lambda: places_of(table))
    estimate_s = timed(lambda: left_s(load_of(table, 100), pace))
    part = sum(one / max(EVERY_S, LEAST_REST * one) for one in (look_s, estimate_s))
    return {
        "rows": rows,
        "look_s": look_s,
        "estimate_s": estimate_s,
        "estimate_every_s": max(EVERY_S, LEAST_REST * estimate_s),
        "part_of_run": part,
    }


# -- the decision log -----------------------------------------------------------------------------


def decisions() -> dict[str, Any]:
    """Processor seconds of whole jobs with a model that is in memory already."""
    from batchgen.exec.job import ExecJob
    from batchgen.exec.kept import KeptModel
    from batchgen.exec.run import Ended, execute
    from batchgen.job.folder import logs_in

    used: dict[str, list[float]] = {"off": [], "auto": [], "full": []}
    sizes: dict[str, float] = {}
    kept = KeptModel()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS + 1):
            for log in used:
                output = Path(folder) / "out.jsonl"

                def look(ended: Ended, log: str = log, output: Path = output) -> None:
                    for path in logs_in(output.with_name("out.jsonl.job")):
                        sizes[log] = path.stat().st_size / LOG_ROWS

                job = ExecJob(
                    model=ROOT / "models" / "sums-moe",
                    input=ROOT / "examples" / "prompts" / "short-400.jsonl",
                    output=output,
                    limit=LOG_ROWS,
                    max_tokens=16,
                    threads=1,
                    force=True,
                    log=log,
                )
                began = time.process_time()
                execute(job, kept=kept, deliver=look)
                if turn:  # the first is for what is new
                    used[log].append(time.process_time() - began)
    ratios = {
        log: statistics.median(one / off for one, off in zip(used[log], used["off"], strict=True))
        for log in ("auto", "full")
    }
    return {
        "rows": LOG_ROWS,
        "turns": TURNS,
        "processor_s": used,
        "processor_overhead": ratios["auto"] - 1,
        "processor_overhead_in_memory_too": ratios["full"] - 1,
        "log_bytes_per_row": sizes,
    }


if __name__ == "__main__":
    sys.exit(main())
