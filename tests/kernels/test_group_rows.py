"""Grouping of pairs by expert on the device against torch: order, padding, blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batchgen.exec.kernels import group_rows as module
from batchgen.exec.kernels.group_rows import (
    Groups,
    group_rows,
    group_rows_reference,
    group_rows_work,
    most_blocks,
    new_groups,
)


def check(chosen: torch.Tensor, num_experts: int, block_rows: int) -> None:
    """Same as the reference, in space that was full of nonsense."""
    expected = group_rows_reference(chosen, num_experts, block_rows)
    space = new_groups(chosen.numel() + 40, num_experts, block_rows, chosen.device)
    for part in space:
        part.fill_(-77)
    found = group_rows(chosen, num_experts, block_rows, out=space)
    assert found.pairs.data_ptr() == space.pairs.data_ptr()
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.block_experts.tolist() == expected.block_experts.tolist()
    used = int((found.block_experts >= 0).sum()) * block_rows
    assert found.pairs[:used].tolist() == expected.pairs[:used].tolist()
    assert (space.block_experts[len(found.block_experts) :] == -77).all()
    assert (space.pairs[len(found.pairs) :] == -77).all()


def draw(
    rng: np.random.Generator, tokens: int, k: int, num_experts: int, device: torch.device
) -> torch.Tensor:
    """Different experts of a token, some of them far more liked than others."""
    liked = rng.random(num_experts) ** 4 * 4
    scores = rng.gumbel(size=(tokens, num_experts)) + liked
    chosen = np.argsort(-scores, axis=1)[:, :k]
    return torch.tensor(chosen, dtype=torch.int32, device=device).contiguous()


@pytest.mark.parametrize("block_rows", [1, 16, 64, 128])
def test_one_launch(block_rows: int, device: torch.device) -> None:
    rng = np.random.default_rng(block_rows)
    for tokens, k, experts in ((1, 1, 1), (1, 8, 16), (7, 2, 8), (33, 3, 37), (256, 8, 20)):
        check(draw(rng, tokens, k, experts, device), experts, block_rows)


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "block_rows"),
    [(257, 8, 16, 16), (700, 3, 37, 128), (1100, 2, 8, 1), (2049, 1, 130, 64)],
)
def test_chunks(tokens: int, k: int, experts: int, block_rows: int, device: torch.device) -> None:
    check(draw(np.random.default_rng(tokens), tokens, k, experts, device), experts, block_rows)


def test_chunks_of_many_pairs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are larger than the least, so that there are no more of them."""
    small = {"AT_ONCE": 16, "CHUNK": 128, "CHUNKS": 4, "SUB": 256}
    monkeypatch.setattr(module, "config", lambda kernel, bucket, default: small)
    rng = np.random.default_rng(3)
    for tokens, k, experts in ((9, 2, 3), (101, 4, 19), (300, 3, 5)):
        check(draw(rng, tokens, k, experts, device), experts, 16)


def test_all_pairs_of_one_expert_and_one_of_each(device: torch.device) -> None:
    for expert in (0, 4, 7):
        check(torch.full((50, 1), expert, dtype=torch.int32, device=device), 8, 16)
    check(torch.arange(64, dtype=torch.int32, device=device)[:, None].contiguous(), 64, 16)
    check(torch.full((3000, 1), 7, dtype=torch.int32, device=device), 8, 128)


def test_no_pairs_and_the_work(device: torch.device) -> None:
    found = group_rows(torch.empty(0, 4, dtype=torch.int32, device=device), 8, 16)
    assert found.counts.tolist() == [0] * 8
    assert len(found.pairs) == len(found.block_experts) == 0
    assert group_rows_work(100).bytes == 800


def test_space_is_enough_for_the_worst_and_no_more() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        pairs, experts = int(rng.integers(1, 60)), int(rng.integers(1, 9))
        block_rows = int(rng.choice([1, 2, 4, 16]))
        most = most_blocks(pairs, experts, block_rows)
        # The worst: every expert has one pair, the rest goes to one, one beyond a full block.
        spread = [1] * min(pairs, experts)
        while sum(spread) < pairs:
            spread[0 if sum(spread) + block_rows > pairs else -1] += min(
                block_rows, pairs - sum(spread)
            )
        assert sum(-(-n // block_rows) for n in spread) <= most
        counts = np.bincount(rng.integers(0, experts, pairs), minlength=experts)
        assert sum(-(-int(n) // block_rows) for n in counts) <= most


def test_the_kinds_of_the_answer(device: torch.device) -> None:
    found = group_rows(torch.zeros(3, 1, dtype=torch.int32, device=device), 2, 16)
    assert isinstance(found, Groups)
    assert {part.dtype for part in found} == {torch.int32}
