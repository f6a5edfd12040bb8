"""One million rows: import and load in 1 GB, in a process of its own. `make bench` times it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROWS = 1_000_000
MEASURE = """
import json, resource, sys, time
start = time.perf_counter()
from batchgen.trace import load, save
from batchgen.trace.formats.registry import import_trace
save(import_trace(sys.argv[1]), sys.argv[2])
rows = len(load(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"rows": rows, "s": time.perf_counter() - start, "peak_bytes": peak}))
"""


def write_csv(path: Path, rng: np.random.Generator) -> None:
    prompt, output = rng.integers(1, 4000, ROWS).tolist(), rng.integers(1, 1000, ROWS).tolist()
    time = np.cumsum(rng.integers(0, 10, ROWS)).tolist()
    with path.open("w") as file:
        file.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
        file.writelines(
            f"{t},ChatGPT,{p},{o},{p + o},Conversation log\n"
            for t, p, o in zip(time, prompt, output, strict=True)
        )


def write_hashed(path: Path, rng: np.random.Generator) -> None:
    """As Mooncake: ten prefix blocks a row."""
    prompt, output = rng.integers(4700, 5120, ROWS).tolist(), rng.integers(1, 1000, ROWS).tolist()
    with path.open("w") as file:
        file.writelines(
            f'{{"timestamp": {row}, "input_length": {p}, "output_length": {o}, '
            f'"hash_ids": {list(range(row, row + 10))}}}\n'
            for row, (p, o) in enumerate(zip(prompt, output, strict=True))
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "hashed"])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_million_rows(tmp_path: Path, kind: str, ending: str) -> None:
    source, target = tmp_path / "source", tmp_path / f"trace{ending}"
    (write_csv if kind == "csv" else write_hashed)(source, np.random.default_rng(0))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    # The peak is an upper bound: Linux counts what this process held when it forked.
    found = json.loads(done.stdout)
    print(kind, ending, found)
    assert found["rows"] == ROWS
    assert found["peak_bytes"] < 1_000_000_000
