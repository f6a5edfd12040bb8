"""The worker: whatever the runtime does to a row, its tokens and its page counts come out right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batchgen.errors import IllegalTransition, UserError
from batchgen.exec.init import init_model
from batchgen.exec.worker import Worker
from batchgen.job.sampling import Sampling

PAGE = 8
NEVER: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("models") / "m", "qwen3", "tiny", seed=1)


def worker(model: Path, hbm_pages: int = 64, host_pages: int = 64) -> Worker:
    return Worker(model, page_tokens=PAGE, hbm_pages=hbm_pages, host_pages=host_pages)


def prompt(seed: int, length: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, 256, length).tolist()
    return tokens


def alone(model: Path, ids: list[int], count: int, sampling: Sampling | None = None) -> list[int]:
    """The undisturbed answer: one row, whole prompt, no other traffic."""
    w = worker(model)
    w.add_row(0, ids, max_output=count, stop_ids=NEVER, sampling=sampling)
    result = w.run_pass([], [(0, 0, len(ids), True)])
    while not result.finished:
        result = w.run_pass([0], [])
    assert result.finished == ((0, "length"),)
    return w.tokens(0)


def pages(tokens: int) -> int:
    return -(-tokens // PAGE)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_p=0.9, seed=5)])
def test_random_traffic_changes_no_answer(model: Path, sampling: Sampling | None) -> None:
    """Rows are chunked, checkpointed, suspended, restored and recomputed at random."""
    generator = np.random.default_rng(7)
    prompts = [prompt(row, int(generator.integers(1, 40))) for row in range(6)]
    outputs = [int(generator.integers(2, 30)) for _ in prompts]
    expected = [alone(model, p, n, sampling) for p, n in zip(prompts, outputs, strict=True)]
    w = worker(model)
    for row, ids in enumerate(prompts):
        w.add_row(row, ids, max_output=outputs[row], stop_ids=NEVER, sampling=sampling)
    on_host = dict.fromkeys(range(6), 0)
    done: dict[int, str] = {}
    while len(done) < len(prompts):
        decodes, chunks = [], []
        for row, ids in enumerate(prompts):
            if row in done or generator.random() < 0.2:
                continue
            known = len(ids) + len(w.tokens(row))
            computed = w.computed_tokens(row)
            if generator.random() < 0.2 and computed:
                w.checkpoint([row], [computed])
                on_host[row] = max(on_host[row], computed)
            if generator.random() < 0.15:
                w.release(row, "hbm")
                if generator.random() < 0.5 and on_host[row]:
                    w.restore([row], [on_host[row]])
                computed = w.computed_tokens(row)
            if computed == known - 1 and w.tokens(row):
                decodes.append(row)
            else:
                length = int(generator.integers(1, known - computed + 1))
                chunks.append((row, computed, length, computed + length == known))
        if decodes or chunks:
            done |= dict(w.run_pass(decodes, chunks).finished)
        held = sum(pages(w.computed_tokens(row)) for row in range(6))
        assert w.pages_used("hbm") == held
        assert w.pages_used("host") == sum(pages(n) for n in on_host.values())
    assert [w.tokens(row) for row in range(6)] == expected
    assert set(done.values()) == {"length"}
    for row in range(6):
        w.forget_row(row)
    assert w.pages_used("hbm") == w.pages_used("host") == 0


def test_a_stop_token_ends_a_row_and_is_kept(model: Path) -> None:
    ids = prompt(3, 20)
    answer = alone(model, ids, 12)
    stop = answer[5]
    w = worker(model)
    w.add_row(0, ids, max_output=12, stop_ids=frozenset({stop}))
    result = w.run_pass([], [(0, 0, 20, True)])
    while not result.finished:
        result = w.run_pass([0], [])
    assert result.finished == ((0, "stop"),)
    assert w.tokens(0) == answer[: answer.index(stop) + 1]


def test_stop_tokens_that_the_model_cannot_produce_end_nothing(model: Path) -> None:
    """A checkpoint may name them; with min_tokens they are not masked either."""
    size = 264
    answers = []
    for stop_ids in (frozenset(), frozenset({size, size + 5, 1 << 20})):
        worker = Worker(model, page_tokens=8, hbm_pages=8, host_pages=0, threads=1)
        assert worker.config.vocab_size == size
        sampling = Sampling(min_tokens=3)
        worker.add_row(0, [1, 2, 3], max_output=6, stop_ids=stop_ids, sampling=sampling)
        result = worker.run_pass([], [(0, 0, 3, True)])
        while not result.finished:
            result = worker.run_pass([0], [])
        assert result.finished == ((0, "length"),)
        answers.append(worker.tokens(0))
    assert answers[0] == answers[1]


def test_a_row_resumes_with_its_produced_tokens(model: Path) -> None:
    ids = prompt(4, 11)
    answer = alone(model, ids, 10)
    w = worker(model)
    w.add_row(9, ids, answer[:4], max_output=10, stop_ids=NEVER)
    result = w.run_pass([], [(9, 0, 15, True)])
    while not result.finished:
        result = w.run_pass([9], [])
    assert w.tokens(9) == answer


def test_a_ghost_is_computed_and_its_token_dropped(model: Path) -> None:
    w = worker(model)
    w.add_row(0, prompt(0, 5), max_output=1, stop_ids=NEVER)
    w.add_row(1, prompt(1, 5), max_output=3, stop_ids=NEVER)
    assert w.run_pass([], [(0, 0, 5, True), (1, 0, 5, True)]).finished == ((0, "length"),)
    assert w.run_pass([0, 1], []).finished == ()
    assert len(w.tokens(0)) == 1
    assert w.tokens(1) == alone(model, prompt(1, 5), 2)


def test_rows_share_published_pages(model: Path) -> None:
    shared = prompt(11, 2 * PAGE)
    first, second = shared + prompt(12, 5), shared + prompt(13, 3)
    w = worker(model)
    w.add_row(0, first, max_output=4, stop_ids=NEVER)
    w.run_pass([], [(0, 0, len(first), True)])
    w.publish(0, 0, [100])
    w.publish(0, 1, [101])
    w.add_row(1, second, max_output=4, stop_ids=NEVER)
    w.adopt(1, [100, 101])
    assert w.computed_tokens(1) == 2 * PAGE
    assert w.pages_used("hbm") == 3
    w.run_pass([0], [(1, 2 * PAGE, 3, True)])
    assert w.pages_used("hbm") == 4
    w.forget_row(0)
    assert w.pages_used("hbm") == 3  # the index and row 1 still hold the shared pages
    while not w.run_pass([1], []).finished:
        pass
    assert w.tokens(1) == alone(model, second, 4)
    w.forget([100, 101])
    assert w.pages_used("hbm") == 3
    w.release(1, "hbm")
    assert w.pages_used("hbm") == 0


def test_orders_that_break_the_contract_are_refused(model: Path) -> None:
    w = worker(model, hbm_pages=2)
    w.add_row(0, prompt(0, 20), max_output=4, stop_ids=NEVER)
    bad_passes = [
        ([0], []),  # nothing computed
        ([], [(0, 1, 2, False)]),  # a hole
        ([], [(0, 0, 21, True)]),  # past the known tokens
        ([], [(0, 0, 5, True)]),  # not the last chunk
        ([], [(0, 0, 20, False)]),
        ([], [(1, 0, 5, True)]),  # unknown row
        ([], []),
        ([], [(0, 0, 20, True)]),  # three pages needed, two there
    ]
    for decodes, chunks in bad_passes:
        with pytest.raises(IllegalTransition):
            w.run_pass(decodes, chunks)
    assert w.pages_used("hbm") == 0
    with pytest.raises(IllegalTransition):
        w.add_row(0, [1], max_output=1, stop_ids=NEVER)
    with pytest.raises(IllegalTransition):
        w.add_row(1, [264], max_output=1, stop_ids=NEVER)
    with pytest.raises(IllegalTransition):
        w.checkpoint([0], [1])
    with pytest.raises(IllegalTransition):
        w.restore([0], [1])
    with pytest.raises(IllegalTransition):
        w.adopt(0, [1])
    with pytest.raises(IllegalTransition):
        w.forget([1])
    with pytest.raises(UserError, match="unknown dtype"):
        Worker(model, page_tokens=8, hbm_pages=1, host_pages=0, dtype="int8")
