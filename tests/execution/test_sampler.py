"""Choosing tokens: ties, bad logits, and draws that follow the distribution."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from batchgen.exec.sampler import choose, greedy, nucleus, uniform
from batchgen.job.sampling import Sampling


def test_greedy_takes_the_lowest_of_equals_and_marks_bad_rows() -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[0.0, 2.0, 2.0], [nan, 1.0, 0.0], [-inf, 0.0, -1.0], [inf, 0.0, 0.0]])
    assert greedy(logits).tolist() == [1, 3, 1, 3]


def test_draws_follow_the_truncated_distribution() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    count = 4000
    logits = torch.log(torch.tensor(probabilities)).repeat(count, 1)
    sampling = [Sampling(temperature=1.0, top_p=0.7, seed=9)] * count
    drawn = nucleus(logits, sampling, range(count)).numpy()
    shares = np.bincount(drawn, minlength=4) / count
    expected = np.array([0.5, 0.3, 0, 0]) / 0.8
    assert np.abs(shares - expected).max() < 4 * 0.5 / count**0.5
    assert shares[2:].sum() == 0


def test_uniform_is_flat_and_free_of_correlation() -> None:
    draws = uniform([3] * 5000 + [4] * 5000, [*range(5000)] * 2)
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 1000).max() < 150
    assert abs(np.corrcoef(draws[:5000], draws[5000:])[0, 1]) < 0.05
    assert draws.min() >= 0
    assert draws.max() < 1


def test_a_row_is_drawn_alike_in_every_batch() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    hot = [Sampling(temperature=1.0, seed=i) for i in range(5)]
    together = choose(logits, [hot[0], None, *hot[2:]], [0, 1, 2, 3, 4])
    single = [choose(logits[i : i + 1], [hot[i]], [i])[0] for i in range(5)]
    single[1] = int(logits[1].argmax())
    assert together == single


COLD = [5e-324, 1e-308, sys.float_info.min, 1e-300, 1e-30, 1e-13]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_temperature_near_zero_is_greedy(dtype: torch.dtype) -> None:
    """Ties too, which bfloat16 has many of; `nucleus` itself stays finite where it is called."""
    logits = (torch.randn(40, 300, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    logits[0, :2] = torch.tensor([-torch.inf, 3e38])
    expected = greedy(logits)
    for temperature in COLD:
        sampling = [Sampling(temperature=temperature, seed=i) for i in range(40)]
        assert choose(logits, sampling, range(40)) == expected.tolist()
        drawn = nucleus(logits, sampling, range(40))
        best = logits.gather(1, drawn[:, None]).squeeze(1)
        assert torch.equal(best, logits.amax(-1))


@pytest.mark.parametrize("top_p", [5e-324, 1e-308, 1e-30])
def test_the_smallest_nucleus_is_the_best_token(top_p: float) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(2))
    for temperature in (1e-9, 1.0, 100.0):
        sampling = [Sampling(temperature=temperature, top_p=top_p, seed=i) for i in range(20)]
        assert choose(logits, sampling, range(20)) == logits.argmax(-1).tolist()
