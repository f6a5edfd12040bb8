"""Exact mode: a row that extends on its KV generates what it would if all before were its prompt.

Also where rows give way to each other, by recomputation or over the host, and with two launched
steps.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.exec.rows import Stage
from batchgen.exec.worker import Worker
from batchgen.sequence import Status

NUM_ROWS = 10
RUNS = {  # preset, hbm pages, host pages, depth, the column that must not be zero
    "vllm": ("vllm", 400, 0, 1, ""),
    "vllm-recompute": ("vllm", 30, 0, 1, "recomputed"),
    "vllm-two-steps": ("vllm", 30, 0, 2, "recomputed"),
    "batchgen-suspend": ("batchgen", 30, 400, 1, "suspensions"),
    "batchgen-two-steps": ("batchgen", 30, 400, 2, "suspensions"),
    "static": ("static", 60, 0, 1, ""),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exact_bodies")
    return {
        arch: init_model(folder / arch, arch, "tiny", seed=3) for arch in ("llama", "qwen3-moe")
    }


def rows_file(path: Path) -> Path:
    rng = np.random.default_rng(5)
    lines = [
        {
            "prompt": rng.integers(0, 256, int(rng.integers(1, 90))).tolist(),
            "max_tokens": int(rng.integers(1, 50)),
            "ignore_eos": True,
        }
        for _ in range(NUM_ROWS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def at_once(worker: Worker, known: list[int], count: int) -> list[int]:
    """What follows these tokens, all of them one prompt of one pass."""
    worker.add_row(0, known, max_output=count, stop_ids=frozenset())
    result = worker.run_pass([], [(0, 0, len(known), True)])
    while not result.finished:
        result = worker.run_pass([0], [])
    tokens = worker.tokens(0)
    worker.forget_row(0)
    return tokens


@pytest.mark.parametrize("arch", ["llama", "qwen3-moe"])
@pytest.mark.parametrize("name", RUNS)
def test_stages_are_those_of_the_whole_conversation(
    name: str,
    arch: str,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    policy, hbm_pages, host_pages, depth, forces = RUNS[name]
    prepared = prepare(
        ExecJob(
            model=models[arch],
            input=rows_file(tmp_path / "rows.jsonl"),
            output=tmp_path / "out.jsonl",
            policy=policy,
            overrides=(
                ("plan.page_tokens", "8"),
                ("plan.boundary", "16"),
                ("plan.token_budget", "64"),
                ("plan.depth", str(depth)),
            ),
            hbm_pages=hbm_pages,
            host_pages=host_pages,
            threads=1,
            exact=True,
            body="exec_bodies:turns",
        )
    )
    found: dict[int, list[Stage]] = {}
    drive(
        prepared,
        WallClock(),
        on_row=lambda row, reason, why, stages: found.__setitem__(row, stages),
    )
    assert (prepared.table.status == Status.DONE).all()
    assert {len(stages) for stages in found.values()} == {1, 3}
    worker = Worker(models[arch], page_tokens=32, hbm_pages=40, host_pages=0, exact=True)
    for row, stages in found.items():
        known = [*prepared.jobs[row].prompt_ids]
        for stage in stages:
            known += stage.given
            assert stage.produced == at_once(worker, known, len(stage.produced)), (row, stage)
            known += stage.produced
    if forces:
        assert getattr(prepared.table, forces).sum() > 0
