"""A recorded run of vLLM: its request log, and the prefixes of the workload that it answered.

The log has lengths and times but no prompts; the workload file has the prompts' prefix blocks in
the same order. Arrivals are those of the log (wall clock; the first becomes time zero).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batchgen.errors import DataError, UserError
from batchgen.trace.table import Trace, make_trace

REQUESTS = "requests.jsonl"


def requests_file(source: Path) -> Path:
    """The request log of a run's folder, plain or gzip; `source` itself if it is no such folder."""
    if source.is_dir():
        for name in (REQUESTS, REQUESTS + ".gz"):
            if (source / name).is_file():
                return source / name
    return source


def with_prefixes(trace: Trace, prefixes: Trace, log: Path, workload: Path) -> Trace:
    """The rows of a log with the prefix blocks of its workload, row by row.

    Raises UserError when the workload has no blocks, and DataError at the first row whose lengths
    differ: then it is the workload of another run.
    """
    if not prefixes.prefix_blocks.size:
        raise UserError(f"{workload}: no row has prefix blocks", remedy="leave out --prefixes")
    if len(trace) > len(prefixes):
        raise DataError(
            f"{len(prefixes)} rows, and {log} has {len(trace)}",
            path=str(workload),
            remedy="give the workload of this run",
        )
    rows = prefixes.head(len(trace))
    for name in ("prompt_tokens", "output_tokens"):
        here, there = getattr(trace, name), getattr(rows, name)
        differ = np.flatnonzero(here != there)
        if differ.size:
            row = int(differ[0])
            raise DataError(
                f"row {row} has {there[row]}, {log} has {here[row]}",
                path=str(workload),
                field=name,
                remedy="give the workload of this run",
            )
    return make_trace(
        name=trace.name,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        max_output_tokens=trace.max_output_tokens,
        arrival_ps=trace.arrival_ps,
        group=trace.group,
        prefix_offsets=rows.prefix_offsets,
        prefix_blocks=rows.prefix_blocks,
        prefix_block_tokens=rows.prefix_block_tokens,
        ids=trace.ids,
        meta=trace.meta | {"prefixes": workload.name},
    )
