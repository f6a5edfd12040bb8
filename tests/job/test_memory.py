"""What rows take of memory: their columns, and not an object each."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from byte_encoder import ByteEncoder

from batchgen.exec.job_rows import JobRows
from batchgen.job.rows import JobRow, RowLimits, read_rows


def test_memory_grows_by_the_columns_of_rows(tmp_path: Path) -> None:
    """Counted in bytes of Python and NumPy at the highest moment: a row of 10 tokens has about 40
    of ids, its id, and 8 for each of a dozen columns; digests of ids that came before are 49 and
    their place in a set. Arrays and sets that grow have twice that for an instant."""
    body = {"model": "m", "messages": [{"role": "user", "content": "0123456789"}], "max_tokens": 9}
    peaks = []
    for rows in (2_000, 22_000):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for number in range(rows):
                row = {"custom_id": f"request-{number}", "body": body}
                file.write(json.dumps(row) + "\n")
        jobs = JobRows()
        tracemalloc.start()
        try:
            for one in read_rows(path, ByteEncoder(), RowLimits(max_context=99), threads=2):
                assert isinstance(one, JobRow)
                jobs.add(one)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(jobs) == rows
    assert (peaks[1] - peaks[0]) / 20_000 < 500
