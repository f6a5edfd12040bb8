"""Chrome trace-event export of a run, for chrome://tracing or Perfetto. Steps, loads and marks.

One process per node, one thread per engine, counters for running rows and leased pages. Format:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from batchgen.paths import beside, put
from batchgen.report.record import KIND_NAMES, RunRecord

PS_PER_TRACE_UNIT = 1_000_000  # the format counts microseconds


def events(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Trace events in order of engine and start; times in microseconds since the run's zero."""
    node = {int(e["engine"]): int(e["node"]) for e in record.engines}
    for number in sorted(set(node.values())):
        yield _name("process_name", number, 0, f"node {number}")
    for engine in sorted(node):
        yield _name("thread_name", node[engine], engine, f"engine {engine}")
    steps = record.steps
    order = np.lexsort((steps["start_ps"], steps["engine"]))
    names = ("engine", "q0", "passes", "start_ps", "duration_ps", "kind", "running")
    more = ("prompt_tokens", "output_tokens", "finished", "kv_pages")
    columns = [steps[name][order].tolist() for name in (*names, *more)]
    for engine, q0, passes, start, length, kind, running, prompt, out, ended, pages in zip(
        *columns, strict=True
    ):
        place = {"pid": node[engine], "tid": engine}
        yield place | {
            "ph": "X",
            "name": KIND_NAMES[kind],
            "cat": "step",
            "ts": start / PS_PER_TRACE_UNIT,
            "dur": length / PS_PER_TRACE_UNIT,
            "args": {
                "q0": q0,
                "passes": passes,
                "running": running,
                "prompt_tokens": prompt,
                "output_tokens": out,
                "finished": ended,
            },
        }
        counter = {"ph": "C", "pid": node[engine]}
        yield counter | {
            "name": f"running, engine {engine}",
            "ts": start / PS_PER_TRACE_UNIT,
            "args": {"rows": running},
        }
        yield counter | {
            "name": f"KV pages, engine {engine}",
            "ts": (start + length) / PS_PER_TRACE_UNIT,
            "args": {"pages": pages},
        }
    for mark in record.marks:
        engine = int(mark["engine"])
        yield {
            "ph": "i",
            "s": "t" if engine in node else "g",
            "pid": node.get(engine, 0),
            "tid": max(engine, 0),
            "name": f"{mark['kind']}: {mark['text']}",
            "cat": str(mark["kind"]),
            "ts": mark["t_ps"] / PS_PER_TRACE_UNIT,
        }


def _name(kind: str, pid: int, tid: int, text: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": text}}


def write_timeline(record: RunRecord, path: Path) -> int:
    """Write the events as JSON, gzipped if the name ends in .gz; returns how many were written."""
    number = 0
    with beside(path) as part:
        with _open(part, packed=path.suffix == ".gz") as out:
            out.write('{"displayTimeUnit":"ms","traceEvents":[')
            for number, event in enumerate(events(record), start=1):
                text = json.dumps(event, separators=(",", ":"))
                out.write(f"\n{text}" if number == 1 else f",\n{text}")
            out.write("\n]}\n")
        put(part, path)
    return number


def _open(path: Path, *, packed: bool) -> IO[str]:
    if packed:
        return gzip.open(path, "wt", encoding="utf-8")
    return path.open("w", encoding="utf-8")
