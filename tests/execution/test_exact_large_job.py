"""A job of 2,000 rows on scarce memory answers with the same bytes as one row at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.run import execute
from batchgen.exec.worker import Worker

NUM_ROWS = 2000


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "qwen3-moe"])
def test_the_bytes_of_one_row_at_a_time(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, evicted = Worker.forget, [0]

    def counted(worker: Worker, keys: Sequence[int]) -> None:
        evicted[0] += len(keys)
        forget(worker, keys)

    monkeypatch.setattr(Worker, "forget", counted)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    model = init_model(tmp_path / "m", arch, "tiny", seed=7)
    rng = np.random.default_rng(3)
    heads = [rng.integers(0, 256, 24).tolist() for _ in range(5)]
    lines = []
    for number in range(NUM_ROWS):
        ids = [*heads[number % 5], *rng.integers(0, 256, int(rng.integers(1, 24))).tolist()]
        row = {"prompt": ids, "max_tokens": int(rng.integers(1, 28)), "ignore_eos": number % 3 == 0}
        row["temperature"] = 0.9 if number % 4 == 0 else 0
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "rows.jsonl").write_text("".join(lines))

    def answers(name: str, policy: str, hbm: int, host: int, **sizes: int) -> bytes:
        job = ExecJob(
            model=model,
            input=tmp_path / "rows.jsonl",
            output=tmp_path / f"{name}.jsonl",
            policy=policy,
            overrides=tuple((f"plan.{key}", str(size)) for key, size in sizes.items()),
            hbm_pages=hbm,
            host_pages=host,
            threads=1,
            exact=True,
        )
        evicted[0] = 0
        ended = execute(job)
        record = ended.record
        assert record is not None
        assert (ended.done, ended.errors) == (NUM_ROWS, 0)
        found[name] = {key: int(record.rows[key].sum()) for key in record.rows}
        found[name]["evicted_pages"] = evicted[0]
        return job.output.read_bytes()

    found: dict[str, dict[str, int]] = {}
    alone = answers("alone", "orca", 64, 0, max_num_seqs=1)
    crowded = answers("crowded", "batchgen", 70, 400, page_tokens=8, boundary=8, max_num_seqs=24)
    mixed = answers("mixed", "vllm", 60, 0, page_tokens=8, token_budget=48, max_num_seqs=16)
    assert crowded == alone
    assert mixed == alone
    assert found["crowded"]["suspensions"] > 0
    assert found["mixed"]["recomputed_tokens"] > 0
    for name in ("crowded", "mixed"):
        assert found[name]["adopted_tokens"] > 0
        assert found[name]["evicted_pages"] > 0
