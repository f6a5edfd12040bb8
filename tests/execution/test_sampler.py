"""Choosing tokens: ties, bad logits, and draws that follow the distribution."""

from __future__ import annotations

import numpy as np
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
