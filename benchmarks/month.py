"""A month of failures on 1,024 GPUs under 1,000,000 rows: prints what it took, exits with 1 when a
row was lost or it took too long.

    python benchmarks/month.py [--rows 1000000] [--gpus 1024] [--days 30] [--policy batchgen]
        [--output benchmarks/results/month-DATE.json]

The failures are real: 27 hours of 64 GPUs (traces/devices/gcp-a100-spot.jsonl), repeated over the
days, once for every 64 GPUs, each time from another hour on. Rows come over the whole time, as
many as a reasoning model could serve; time is that of this process, with the full log of decisions.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import machine
from msgspec import structs

import batchgen
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.trace.devices.events import DeviceTrace, Trouble
from batchgen.trace.devices.read import load as load_devices
from batchgen.trace.devices.write import save as save_devices
from batchgen.trace.generate import GenerateOptions, Part, generate
from batchgen.trace.lengths import Lognormal
from batchgen.trace.table import Trace
from batchgen.trace.write import save
from batchgen.units import to_ps

SOURCE = Path(__file__).parents[1] / "traces" / "devices" / "gcp-a100-spot.jsonl"
DAY_S = 86_400
MOST_S = 120.0


def month(gpus: int, days: float) -> DeviceTrace:
    """The source's lines for all GPUs and days. Every part of a copy that begins within the month
    has its losses and returns in order, so no GPU is lost for good but by the source's own end."""
    source = load_devices(str(SOURCE))
    end_ps, span_ps, blocks = to_ps(days * DAY_S), source.span_ps, -(-gpus // source.gpus)
    found: list[Trouble] = []
    for block in range(blocks):
        first = -(block * span_ps // blocks)
        for begin_ps in range(first, end_ps, span_ps):
            part = source.window(max(0, -begin_ps), span_ps - max(0, -begin_ps))
            begin_ps = max(begin_ps, 0)
            if begin_ps:  # what the copy before it left away is there again
                found += [
                    Trouble(begin_ps, "back", gpu=block * source.gpus + gpu)
                    for gpu in range(source.gpus)
                ]
            found += [
                structs.replace(one, at_ps=begin_ps + one.at_ps, gpu=block * source.gpus + one.gpu)
                for one in part.troubles
            ]
    kept = [one for one in found if one.at_ps < end_ps and one.gpu < gpus]
    kept.sort(key=lambda one: one.at_ps)
    return DeviceTrace(name="month", troubles=tuple(kept), gpus=gpus)


def load(num_rows: int, days: float, seed: int) -> Trace:
    """Rows of a reasoning model that come at an even rate, to the last day but one."""
    output = Lognormal(mean=6000, sigma=0.9, max=32_768)
    part = Part(prompt=Lognormal(mean=800, sigma=1.0, max=16_384), output=output)
    options = GenerateOptions(
        num_rows=num_rows,
        seed=seed,
        prefix_block_tokens=0,
        rate_per_s=num_rows / max((days - 1) * DAY_S, 1.0),
    )
    return generate((part,), options)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--gpus", type=int, default=1024)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--policy", default="batchgen")
    parser.add_argument("--model", default="deepseek-r1")
    parser.add_argument("--layout", default="tp8")
    parser.add_argument("--boundary", type=int, default=8192)
    parser.add_argument("--log", default="full", choices=("off", "steps", "full"))
    parser.add_argument("--output", type=Path, help="JSON file to write, printed as well")
    given = parser.parse_args(arguments)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        devices, rows = Path(folder) / "month.jsonl", Path(folder) / "rows.jsonl.gz"
        troubles = month(given.gpus, given.days)
        save_devices(troubles, devices)
        trace = load(given.rows, given.days, 0)
        save(trace, rows)
        job = SimJob(
            trace=str(rows),
            model=given.model,
            gpu="h200",
            gpus=given.gpus,
            layout=given.layout,
            policy=given.policy,
            arrivals="trace",
            faults=str(devices),
            log=given.log,
            overrides=(("plan.boundary", str(given.boundary)),),
        )
        began = time.process_time()
        record = simulate(job, trace=trace)
        took_s = time.process_time() - began
    lost = sum(one.kind == "lost" for one in troubles.troubles)
    bad = sum(reason not in ("stop", "length") for reason in record.row_reasons)
    whole = bool((record.rows["output_tokens"] == trace.output_tokens).all())
    result = {
        "schema": 1,
        "benchmark": "benchmarks/month.py",
        **machine.commit(),
        "machine": machine.describe(),
        "form": "compiled" if batchgen.is_compiled() else "python",
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "policy": given.policy,
        "boundary_passes": given.boundary,
        "log": given.log,
        "rows": len(trace),
        "gpus": given.gpus,
        "days": round(float(record.rows["end_ps"].max()) / 1e12 / DAY_S, 2),
        "gpu_losses": lost,
        "rows_not_ended_well": bad,
        "all_tokens_there": whole,
        "rows_moved": int((record.rows["migrations"] > 0).sum()),
        "recomputed_tokens": int(record.rows["recomputed_tokens"].sum()),
        "output_tokens": int(record.rows["output_tokens"].sum()),
        "steps": len(record.steps["engine"]),
        "log_bytes": sum(map(len, record.decisions or ())),
        "process_s": round(took_s, 1),
        "most_process_s": MOST_S,
    }
    machine.publish(result, given.output)
    return 0 if not bad and whole and took_s <= MOST_S else 1


if __name__ == "__main__":
    sys.exit(main())
