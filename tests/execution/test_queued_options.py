"""Bias, penalties and log probabilities of passes in flight: the device's work, nobody waits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.exec.gpu.worker import QueuedWorker
from batchgen.exec.init import init_model
from batchgen.exec.worker import Worker
from batchgen.job.sampling import Sampling

PLAIN = Sampling()
WARM = Sampling(temperature=1.3, seed=11, top_k=30)
OPTIONS = (
    PLAIN,
    replace(PLAIN, repetition_penalty=1.7),
    replace(PLAIN, presence_penalty=0.9, frequency_penalty=0.4, logprobs=3),
    replace(WARM, frequency_penalty=1.5, repetition_penalty=0.8),
    replace(PLAIN, logit_bias=((7, 5.0), (9, -100.0)), logprobs=0),
    replace(PLAIN, min_tokens=9, logprobs=2),
    replace(WARM, logprobs=20, min_tokens=3, presence_penalty=-0.5),
)
PASSES = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("queued") / "m", "qwen3", "tiny", seed=3)


def filled(make: Any, model: Path) -> Any:
    """A worker whose rows have their prompts, most of which repeat tokens."""
    worker = make(model, page_tokens=8, hbm_pages=90, host_pages=0, device="cpu")
    chunks = []
    for row, sampling in enumerate(OPTIONS):
        ids = np.random.default_rng(row).integers(0, 40, 6 + 5 * row).tolist()
        worker.add_row(
            row, ids, max_output=PASSES, stop_ids=frozenset(range(0, 256, 5)), sampling=sampling
        )
        chunks.append((row, 0, len(ids), True))
    return worker, chunks


def outcome(worker: Any) -> list[tuple[list[int], Any]]:
    found = []
    for row in range(len(OPTIONS)):
        state = worker.rows.options.state.get(worker.rows.slot(row))
        noted = None if state is None or state.logprobs is None else state.logprobs.tokens
        found.append((worker.tokens(row), noted))
    return found


def test_the_same_as_pass_by_pass(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, chunks = filled(Worker, model)
    rows = list(range(len(OPTIONS)))
    plain.run_pass([], chunks)
    for _ in range(PASSES):
        plain.run_pass(rows, [])

    queued, chunks = filled(QueuedWorker, model)
    monkeypatch.setattr(queued, "_learn_all", lambda: pytest.fail("the host waited"))
    flights = [queued.launch_pass([], chunks)]
    for _ in range(PASSES):
        flights.append(queued.launch_pass(rows, []))
        assert flights[0].result is None
        queued.collect_pass(flights.pop(0))
    queued.collect_pass(flights.pop(0))

    for ours, expected in zip(outcome(queued), outcome(plain), strict=True):
        assert ours[0] == expected[0]
        assert (ours[1] is None) == (expected[1] is None)
        for one, other in zip(ours[1] or (), expected[1] or (), strict=True):
            assert one.chosen == pytest.approx(other.chosen, abs=2e-6)
            assert [token for token, _ in one.best] == [token for token, _ in other.best]
            values = [value for _, value in other.best]
            assert [value for _, value in one.best] == pytest.approx(values, abs=2e-6)
    # Options did something, and rows ended at different times.
    assert len({len(tokens) for tokens, _ in outcome(plain)}) > 2
    assert len(outcome(plain)[2][1]) == len(outcome(plain)[2][0])
