"""Passes on a GPU: nobody waits for the device, graphs and launches agree, rows feed themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from batchgen.exec.gpu.worker import QueuedWorker
from batchgen.exec.init import init_model
from batchgen.job.sampling import Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PROMPTS = [np.random.default_rng(n).integers(0, 256, 5 + 7 * n).tolist() for n in range(5)]


@pytest.fixture(scope="module", params=["qwen3", "qwen3-moe", "deepseek-v3", "gpt-oss"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("gpu") / "m", request.param, "tiny", seed=3)


PLAIN = Sampling()
OPTIONS = (
    replace(PLAIN, repetition_penalty=1.4, logprobs=3),
    replace(PLAIN, temperature=0.9, seed=4, top_p=0.9, frequency_penalty=0.5),
    replace(PLAIN, logit_bias=((7, 2.0),), min_tokens=20),
    replace(PLAIN, temperature=1.2, seed=5),
    PLAIN,
)


def started(model: Path, asking: bool = False, **options: object) -> QueuedWorker:
    worker = QueuedWorker(model, page_tokens=8, hbm_pages=60, host_pages=20, **options)
    for row, ids in enumerate(PROMPTS):
        sampling = OPTIONS[row] if asking else None
        worker.add_row(row, ids, max_output=30, stop_ids=frozenset(), sampling=sampling)
    chunks = [(row, 0, len(ids), True) for row, ids in enumerate(PROMPTS)]
    worker.collect_pass(worker.launch_pass([], chunks))
    return worker


def decoded(worker: QueuedWorker, passes: int) -> list[list[int]]:
    """Tokens after some passes, each launched before the one before it is collected."""
    rows = list(range(len(PROMPTS)))
    flights = [worker.launch_pass(rows, [])]
    for _ in range(passes - 1):
        flights.append(worker.launch_pass(rows, []))
        worker.collect_pass(flights.pop(0))
    worker.collect_pass(flights.pop(0))
    return [worker.tokens(row) for row in rows]


@pytest.mark.parametrize("asking", [False, True])
def test_graphs_and_launches_give_the_same_tokens(model: Path, asking: bool) -> None:
    other = started(model, asking, graphs=False)
    assert decoded(started(model, asking), 20) == decoded(other, 20)


@pytest.mark.parametrize("asking", [False, True])
def test_no_decode_pass_waits_for_the_device(model: Path, asking: bool) -> None:
    worker = started(model, asking)
    decoded(worker, 4)  # graphs are captured by now
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoded(worker, 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_warming_up_leaves_rows_alone(model: Path) -> None:
    worker, other = started(model), started(model)
    assert worker.warm_up(token_budget=64, seats=8) > 0
    assert decoded(worker, 10) == decoded(other, 10)


def test_passes_of_any_counts_are_compiled_before(model: Path) -> None:
    """Decodes and chunks in all numbers; what a pass needs was compiled by warming up."""
    from triton import knobs

    worker = QueuedWorker(model, page_tokens=8, hbm_pages=60, host_pages=0, dtype="bfloat16")
    worker.warm_up(token_budget=256, seats=16)
    compiled: list[str] = []

    def note(*, src: object, **_: object) -> None:
        compiled.append(str(getattr(src, "name", src)))

    for row, ids in enumerate(PROMPTS):
        worker.add_row(row, ids, max_output=30, stop_ids=frozenset())
    knobs.compilation.listener = note
    try:
        worker.collect_pass(worker.launch_pass([], [(0, 0, len(PROMPTS[0]), True)]))
        for row in range(1, len(PROMPTS)):
            half = len(PROMPTS[row]) // 2
            for chunk in ((row, 0, half, False), (row, half, len(PROMPTS[row]) - half, True)):
                worker.collect_pass(worker.launch_pass(list(range(row)), [chunk]))
        decoded(worker, 3)
    finally:
        knobs.compilation.listener = None
    assert not compiled
