"""Tokens of the device's sampler against the CPU's and against sorted rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from batchgen.exec.blocks import Blocks, greedy
from batchgen.exec.kernels.sample import (
    BLOCK_TOKENS,
    DrawColumns,
    sample,
    sample_reference,
    tops_kernel,
)
from batchgen.exec.sampler import Draws, choose, uniform
from batchgen.job.sampling import Sampling


def host_columns(rows: Sequence[Sampling], counters: Sequence[int]) -> Draws:
    def column(name: str) -> Any:
        return np.array([getattr(one, name) for one in rows])

    return Draws(
        temperature=column("temperature").astype(np.float64),
        top_p=column("top_p").astype(np.float64),
        min_p=column("min_p").astype(np.float64),
        top_k=column("top_k").astype(np.int64),
        seeds=np.array([one.seed % (1 << 64) for one in rows], dtype=np.uint64),
        counters=np.array(counters, dtype=np.int64),
    )


def device_columns(draws: Draws, device: torch.device) -> DrawColumns:
    def column(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return DrawColumns(
        temperature=column(draws.temperature),
        top_p=column(draws.top_p),
        min_p=column(draws.min_p),
        top_k=column(draws.top_k),
        seeds=column(draws.seeds.view(np.int64)),
        counters=column(draws.counters),
    )


def drawn(
    logits: torch.Tensor, rows: Sequence[Sampling], counters: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Tokens of the kernel, of the CPU and of the reference that sorts."""
    draws = host_columns(rows, counters)
    drawing = np.flatnonzero(draws.temperature > 0)
    wide = logits.float().cpu()
    expected = choose(Blocks.of(wide), drawing, draws[drawing]).tolist()
    columns = device_columns(draws, logits.device)
    out = torch.full((len(rows),), -7, dtype=torch.int32, device=logits.device)
    found = sample(logits, columns, out=out).tolist()
    on_cpu = device_columns(draws, torch.device("cpu"))
    at_random = torch.from_numpy(uniform(draws.seeds, draws.counters))
    return found, expected, sample_reference(wide, on_cpu, at_random).tolist()


def peaked(generator: Any, rows: int, vocab_size: int, wide: torch.dtype) -> torch.Tensor:
    """Like a model's: a few likely tokens, neighbours among them, above many that are not."""
    logits = generator.normal(size=(rows, vocab_size)) * 1.5
    for row in logits:
        likely = generator.permutation(vocab_size)[: min(40, vocab_size)]
        row[likely] = 6 + generator.exponential(2.0, len(likely))
    return torch.from_numpy(logits).to(wide)


def test_greedy(device: torch.device, wide: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    few = torch.tensor([[0.0, 2.0, 2.0], [nan, 1, 0], [-inf, 0, -1], [inf, 0, 0], [-inf] * 3])
    assert sample(few.to(device, wide)).tolist() == [1, 3, 1, 3, 3]
    generator = np.random.default_rng(0)
    for vocab_size in (1, 128, 129, 20_000):
        wider = torch.from_numpy(generator.integers(-30, 30, (6, vocab_size + 8))).to(wide)
        logits = wider[:, :vocab_size]
        logits[1, vocab_size // 2] = nan
        logits[2, -1] = inf
        logits[3] = -inf
        expected = greedy(logits.float()).tolist()
        assert expected[1:4] == [vocab_size] * 3
        assert sample(wider.to(device)[:, :vocab_size]).tolist() == expected
        zeros = [Sampling()] * 6
        assert drawn(wider.to(device)[:, :vocab_size], zeros, range(6))[0] == expected
    assert sample(few[:0].to(device, wide)).shape == (0,)


OPTIONS = (
    Sampling(temperature=1.0),
    Sampling(temperature=0.6, top_k=20, top_p=0.95),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=0.8, top_k=1),
    Sampling(temperature=1.5, top_k=50),
    Sampling(temperature=0.7, min_p=0.05),
    Sampling(temperature=1.0, top_p=0.5, min_p=0.2),
    Sampling(temperature=0.9, top_k=7, top_p=0.5, min_p=0.01),
    Sampling(temperature=0.0),
    Sampling(temperature=1e-9, top_p=0.1),
    Sampling(temperature=0.05),
    Sampling(temperature=1.0, top_p=1e-300),
    Sampling(temperature=1.0, top_k=1 << 31, top_p=0.8),
    Sampling(temperature=2.0, min_p=1.0),
)


@pytest.mark.parametrize("vocab_size", [5, 300, 20_001])
def test_the_same_tokens_as_the_cpu(
    vocab_size: int, device: torch.device, wide: torch.dtype
) -> None:
    generator = np.random.default_rng(vocab_size)
    rows = [
        Sampling(**{**vars_of(one), "seed": int(generator.integers(-(1 << 63), 1 << 63))})
        for one in OPTIONS
    ]
    for step in range(1 if device.type == "cpu" else 20):
        counters = generator.integers(0, 100_000, len(rows)).tolist()
        logits = peaked(generator, len(rows), vocab_size, wide).to(device)
        logits[:, 3] = logits[:, 1] = logits.amax(1)  # ties of the best
        found, expected, sorted_ones = drawn(logits, rows, counters)
        assert found == expected == sorted_ones, step


def test_greedy_rows_and_tokens_that_cannot_be_leave_no_nan(
    device: torch.device, wide: torch.dtype
) -> None:
    """Masses of blocks are numbers, whatever a row's temperature is: 0 * -inf is none."""
    vocab_size = 3 * BLOCK_TOKENS + 7
    logits = peaked(np.random.default_rng(13), 4, vocab_size, wide)
    logits[:, 5:200:3] = -float("inf")
    logits[:, BLOCK_TOKENS : 2 * BLOCK_TOKENS] = -float("inf")
    heats = (0.0, 100.0, 1e-9, 1.0)
    for change in ({}, {"top_k": 30}, {"top_p": 0.9}, {"min_p": 0.01}):
        rows = [Sampling(temperature=heat, seed=2, **change) for heat in heats]
        found, expected, sorted_ones = drawn(logits.to(device), rows, range(4))
        assert found == expected == sorted_ones
    heats = (*heats[:3], 1e300)  # more than a job may ask for
    temperature = torch.tensor(heats, dtype=torch.float64, device=device)
    tops, masses = (torch.full((4, 4), math.nan, device=device) for _ in range(2))
    tops_kernel[(1, 4)](
        logits.to(device), temperature, tops, masses, vocab_size, vocab_size, 4,
        BLOCKS=4, TOKENS=BLOCK_TOKENS, DRAWS=True,
    )  # fmt: skip
    assert not tops.isnan().any()
    assert masses.isfinite().all()
    assert (masses[:, 1] == 0).all()


def vars_of(one: Sampling) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("temperature", "top_p", "top_k", "min_p")}


def test_flat_rows_are_searched_whole(device: torch.device, wide: torch.dtype) -> None:
    """More candidates than are collected, and ties over the whole row."""
    generator = np.random.default_rng(3)
    vocab_size = 20_000
    logits = torch.from_numpy(generator.normal(size=(6, vocab_size)) * 0.1).to(wide)
    logits[4:] = logits[4:].round()
    logits[5] = 0.0
    rows = [
        Sampling(temperature=1.0, top_p=0.953, seed=1),
        Sampling(temperature=1.0, top_k=9_001, seed=2),
        Sampling(temperature=1.0, top_k=15_001, top_p=0.7003, min_p=0.8, seed=3),
        Sampling(temperature=0.5, min_p=0.5, seed=4),
        Sampling(temperature=1.0, top_p=0.501, top_k=19_003, seed=5),
        Sampling(temperature=1.0, top_k=5_001, seed=6),
    ]
    for step in range(1 if device.type == "cpu" else 40):
        found, _, sorted_ones = drawn(logits.to(device), rows, [step] * 6)
        assert found == sorted_ones


@pytest.mark.parametrize(
    "one",
    [
        Sampling(temperature=1.3),
        Sampling(temperature=1.0, top_k=12, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.1),
    ],
)
def test_the_distribution(one: Sampling, device: torch.device, wide: torch.dtype) -> None:
    generator = np.random.default_rng(7)
    logits = torch.from_numpy(generator.integers(0, 12, (1, 40)) / 4.0).to(wide)
    count = 12 if device.type == "cpu" else 20_000
    draws = host_columns([one] * count, range(count))
    tokens = sample(logits.to(device).expand(count, -1), device_columns(draws, device))
    values = logits[0].double().numpy()
    weights = np.exp((values - values.max()) / one.temperature)
    order = np.argsort(-values, kind="stable")[: one.top_k or 40]
    before = np.cumsum(weights[order]) - weights[order]
    order = order[before < one.top_p * weights[order].sum()]
    order = order[weights[order] >= one.min_p]
    expected = np.zeros(40)
    expected[order] = weights[order] / weights[order].sum() * count
    seen = np.bincount(tokens.cpu().numpy(), minlength=40)
    assert not seen[expected == 0].any()
    some = expected > 0
    chi = ((seen - expected)[some] ** 2 / expected[some]).sum()
    freedom = int(some.sum()) - 1
    assert chi < freedom + 5 * np.sqrt(2 * freedom)


def test_a_draw_does_not_depend_on_its_batch(device: torch.device, wide: torch.dtype) -> None:
    generator = np.random.default_rng(11)
    logits = peaked(generator, 8, 2_000, wide).to(device)
    draws = host_columns(OPTIONS[:8], range(8))
    together = sample(logits, device_columns(draws, device)).tolist()
    for row in (0, 7):
        alone = sample(logits[row : row + 1], device_columns(draws[np.array([row])], device))
        assert alone.tolist() == [together[row]]
