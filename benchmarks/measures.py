"""The measurements that need batchgen in the process. run.py calls each in a process of its own.

    python benchmarks/measures.py NAME [JSON arguments]     prints one JSON object

Times of the simulator are process times of `Simulation.run()` beside wall times: other programs on
the machine stretch the second, hardly the first.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from batchgen.sim.cluster import Simulation
    from batchgen.trace.table import Trace

MODEL, MOE_MODEL, GPU = "llama-3.1-8b", "qwen3-30b-a3b", "h100"
SEED = 0
SEATS = 32


def load_of(rows: int, *, same: bool = False) -> Trace:
    """The load of the benchmark: lognormal, mean 700 in (sigma 0.8) and 1,000 out (sigma 1.0).

    same: every row has the mean lengths, so that events look alike at every number of rows.
    """
    from batchgen.trace.generate import lognormal

    if same:
        return lognormal(700, 1e-9, 1000, 1e-9, rows, SEED)
    return lognormal(700, 0.8, 1000, 1.0, rows, SEED)


def simulation_of(
    trace: Trace,
    engines: int,
    preset: str,
    *,
    reference: bool = False,
    ranks: int = 1,
    log: str = "off",
    arrivals: str = "batch",
    **sizes: int,
) -> Simulation:
    """A simulation of `trace`, ready to run, as `batchgen sim` sets it up: as one closed batch, or
    with the arrivals of the trace.

    ranks: per engine; one is dense data parallelism, several a mixture of experts in lockstep.
    sizes: options of the plan (token_budget, max_num_seqs, ...).
    """
    from batchgen.sim.setup import set_up
    from batchgen.simjob import SimJob

    job = SimJob(
        trace="",
        model=MODEL if ranks == 1 else MOE_MODEL,
        gpu=GPU,
        gpus=engines * ranks,
        layout=f"dp{engines}" if ranks == 1 else f"dpa{ranks}+ep{ranks},dp{engines}",
        policy=preset,
        overrides=tuple((f"plan.{name}", str(value)) for name, value in sizes.items()),
        log=log,
        arrivals=arrivals,
    )
    return set_up(job, trace, reference=reference).simulation


def timed(simulation: Simulation) -> dict[str, Any]:
    """Run it; seconds, events, and microseconds per event."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    simulation.run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "rows": len(simulation.table),
        "events": simulation.events,
        "passes": simulation.passes,
        "wall_s": wall,
        "cpu_s": cpu,
        "us_per_event": cpu / simulation.events * 1e6,
        "us_per_row": cpu / len(simulation.table) * 1e6,
    }


def coalesced(preset: str, rows: int, engines: int) -> dict[str, Any]:
    """Coalesced stepping against one pass per step: same end times of all rows, ratio of times."""
    trace = load_of(rows)
    fast, slow = (simulation_of(trace, engines, preset, reference=flag) for flag in (False, True))
    results = {"coalesced": timed(fast), "reference": timed(slow)}
    ends = [simulation.recorder.end_ps for simulation in (fast, slow)]
    if not np.array_equal(*ends):
        raise SystemExit(
            f"{preset}: end times differ in {int((ends[0] != ends[1]).sum())} of {rows} rows"
        )
    return {
        **results,
        "equal_end_times": True,
        "ratio": results["reference"]["cpu_s"] / results["coalesced"]["cpu_s"],
    }


def spread(trace: Trace, engines: int, seconds: float) -> Trace:
    """The trace with arrivals at random times: on `engines` engines, `seconds` apart on each, so
    that load and idleness of an engine are the same however many there are."""
    rows = len(trace)
    times = np.random.default_rng(SEED).random(rows) * (seconds * rows / engines * 1e12)
    return replace(trace, arrival_ps=np.sort(times).astype(np.int64))


def events(
    preset: str,
    rows: int,
    engines: int,
    same: bool = False,
    apart_s: float = 0.0,
    prefill_engines: int = 0,
) -> dict[str, Any]:
    """Cost per event of one run, with few enough seats that rows wait on every engine.

    Then most events are of one sort, a row that ends and one that follows, whatever the number of
    rows; without the limit a small load would run as a whole, in fewer and heavier events.
    apart_s: rows come by themselves, so far apart on every engine, instead of all at once.
    prefill_engines: so many only prefill, the others only decode.
    """
    trace, arrivals = load_of(rows, same=same), "batch"
    if apart_s:
        trace, arrivals = spread(trace, engines, apart_s), "trace"
    sizes = {"max_num_seqs": SEATS} | (
        {"prefill_engines": prefill_engines} if prefill_engines else {}
    )
    result = timed(simulation_of(trace, engines, preset, arrivals=arrivals, **sizes))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"engines": engines, **result, "peak_rss_bytes": peak}


def scale(preset: str, rows: int, engines: int, **options: Any) -> dict[str, Any]:
    """A whole simulation with what the machine could do meanwhile. fixed: every row has 2,048
    tokens in and 512 out; else the lognormal load. Further options as in `simulation_of`."""
    import pace

    from batchgen.trace.generate import lognormal

    fixed = options.pop("fixed", False)
    trace = lognormal(2048, 1e-9, 512, 1e-9, rows, SEED) if fixed else load_of(rows)
    result = pace.paced(simulation_of(trace, engines, preset, **options))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"engines": engines, **result, "peak_rss_bytes": peak}


def trace_import(rows: int, folder: str) -> dict[str, Any]:
    """Import and load a CSV of `rows` rows in the columns of the Azure traces."""
    from batchgen.trace import load, save
    from batchgen.trace.formats.registry import import_trace

    source, target = Path(folder) / "azure.csv", Path(folder) / "trace.jsonl"
    _write_csv(source, rows)
    began = time.perf_counter()
    save(import_trace(source), target)
    imported = time.perf_counter()
    trace = load(target)
    loaded = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "rows": len(trace),
        "import_s": imported - began,
        "load_s": loaded - imported,
        "total_s": loaded - began,
        "peak_rss_bytes": peak,
    }


def _write_csv(path: Path, rows: int) -> None:
    rng = np.random.default_rng(SEED)
    prompts, outputs = rng.integers(1, 8000, rows), rng.integers(1, 1000, rows)
    with path.open("w", encoding="utf-8") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            ms, seconds = index % 1000, index // 1000
            hour, minute, second = seconds // 3600, seconds // 60 % 60, seconds % 60
            stamp = f"2023-11-16 {hour:02}:{minute:02}:{second:02}.{ms:03}0000"
            file.write(f"{stamp},{prompt},{output}\n")


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "coalesced": coalesced,
    "events": events,
    "scale": scale,
    "trace_import": trace_import,
}

if __name__ == "__main__":
    chosen = MEASURES[sys.argv[1]]
    print(json.dumps(chosen(**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))))
