"""Oracle: the logits processors of Hugging Face transformers keep and change the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_sampler import drawn

from batchgen.exec.adjust import adjust
from batchgen.exec.rows import RowInput, Rows
from batchgen.job.sampling import Sampling

process = pytest.importorskip("transformers.generation.logits_process")

CASES = [
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.9},
    {"top_p": 0.97, "min_p": 0.02},
    {"top_k": 30, "top_p": 0.95, "min_p": 0.1},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_tokens_that_can_be_drawn_are_the_same(options: dict[str, Any]) -> None:
    """Over many seeds every token that is kept there is drawn here, and no other."""
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(8)) * 3
    steps = [process.TemperatureLogitsWarper(1.5)]
    if "top_k" in options:
        steps.append(process.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        steps.append(process.TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        steps.append(process.MinPLogitsWarper(options["min_p"]))
    scores = logits.clone()
    for step in steps:
        scores = step(torch.zeros(1, 1, dtype=torch.int64), scores)
    probabilities = scores.softmax(-1)[0]
    count = 4000
    one = Sampling(temperature=1.5, seed=2, **options)
    tokens = drawn(logits.expand(count, -1).contiguous(), [one] * count, range(count))
    kept = set(torch.nonzero(probabilities > 0).flatten().tolist())
    likely = set(torch.nonzero(probabilities * count > 20).flatten().tolist())
    assert likely <= set(tokens) <= kept


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.4])
def test_the_repetition_penalty_is_the_same(penalty: float) -> None:
    generator = np.random.default_rng(3)
    prompt: list[int] = generator.integers(0, 50, 12).tolist()
    rows = Rows(50)
    sampling = Sampling(repetition_penalty=penalty, logit_bias=((0, 0.0),))
    given = RowInput(prompt_ids=prompt, max_output=9, stop_ids=frozenset(), sampling=sampling)
    rows.add(0, given)
    slots = np.array([0])
    for token in (3, 3, 40):
        rows.append(slots, np.array([token]))
    logits = torch.from_numpy(generator.standard_normal((1, 50), dtype=np.float32))
    known = torch.tensor([[*prompt, 3, 3, 40]])
    expected = process.RepetitionPenaltyLogitsProcessor(penalty)(known, logits.clone())
    adjust(logits, slots, slots, rows)
    torch.testing.assert_close(logits, expected)
