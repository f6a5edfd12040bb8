"""What rows take of memory: their columns, and not an object each."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from byte_encoder import ByteEncoder

from batchgen.exec.job_rows import JobRows
from batchgen.job.rows import RowLimits, read_chunks


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
            limits = RowLimits(max_context=99)
            for chunk in read_chunks(path, ByteEncoder(), limits, threads=2, here_rows=1 << 60):
                assert not chunk.bad
                jobs.extend(chunk.good)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(jobs) == rows
    assert (peaks[1] - peaks[0]) / 20_000 < 500
