"""Routing on the device against the router of the models: numbers, order, ties and weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.config import RoutingConfig
from batchgen.exec.kernels.route_experts import (
    route_experts,
    route_experts_reference,
    route_experts_work,
)
from batchgen.exec.routing import Router

PLAIN = RoutingConfig()
# Experts, experts per token and the rules of published families, and odd ones.
FAMILIES = {
    "qwen3": (128, 8, PLAIN),
    "mixtral": (8, 2, PLAIN),
    "gpt-oss": (32, 4, RoutingConfig(score="chosen-softmax")),
    "deepseek-v2": (
        160,
        6,
        RoutingConfig(normalise=False, scaling=16.0, groups=8, groups_kept=3),
    ),
    "deepseek-v3": (
        256,
        8,
        RoutingConfig(
            score="sigmoid", scaling=2.5, groups=8, groups_kept=4, group_top=2, correction=True
        ),
    ),
    "one": (1, 1, PLAIN),
    "all": (5, 5, RoutingConfig(normalise=False)),
    "odd": (37, 3, RoutingConfig(score="sigmoid", correction=True)),
    "corrected": (24, 3, RoutingConfig(score="chosen-softmax", correction=True)),
    "wide": (512, 10, PLAIN),
    "odd groups": (18, 4, RoutingConfig(groups=3, groups_kept=2, group_top=3, scaling=0.5)),
}


def arguments(config: RoutingConfig, k: int) -> dict[str, Any]:
    return {
        "k": k,
        "score": config.score,
        "normalise": config.normalise,
        "scaling": config.scaling,
        "groups": config.groups,
        "groups_kept": config.groups_kept,
        "group_top": config.group_top,
    }


def router_says(
    logits: torch.Tensor, k: int, config: RoutingConfig, correction: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The router of the models, whose product gives the logits back."""
    router = Router(
        config=config,
        experts_per_token=k,
        arithmetic=Arithmetic(torch.float32, "reference"),
        weight=torch.eye(logits.shape[1], device=logits.device),
        correction=correction,
    )
    return router(logits)


def poisoned(rows: int, k: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.full((rows, k), torch.nan, device=device)
    return weights, torch.full((rows, k), -7, dtype=torch.int32, device=device)


@pytest.mark.parametrize("name", FAMILIES)
def test_as_the_router_says(name: str, device: torch.device) -> None:
    num_experts, k, config = FAMILIES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    for rows in (1, 2, 13):
        # Coarse logits: many are equal, and others are well apart.
        drawn = rng.integers(-12, 13, (rows, num_experts)) / 4
        logits = torch.tensor(drawn, dtype=torch.float32, device=device)
        correction = None
        if config.correction:
            drawn = rng.integers(-3, 4, num_experts) / 8
            correction = torch.tensor(drawn, dtype=torch.float32, device=device)
        expected = router_says(logits, k, config, correction)
        given = arguments(config, k)
        out = poisoned(rows, k, device)
        found = route_experts(logits, correction=correction, out=out, **given)
        assert found[0] is out[0]
        plain = route_experts_reference(logits, correction=correction, **given)
        for weights, experts in (found, plain):
            assert experts.tolist() == expected[1].tolist()
            torch.testing.assert_close(weights, expected[0], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of NumPy, which interprets
def test_ties_go_to_the_lower_expert_and_zeros_are_one(device: torch.device) -> None:
    logits = torch.zeros(3, 20, device=device)
    logits[1, ::2] = -0.0
    logits[2, 7:] = -torch.inf
    weights, experts = route_experts(logits, k=4, score="chosen-softmax")
    assert experts.tolist() == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(weights, torch.full_like(weights, 0.25))
    # Scores of nothing at all: the lowest numbers, and no division by zero.
    logits = torch.full((1, 20), -200.0, device=device)
    weights, experts = route_experts(logits, k=3, score="sigmoid")
    assert experts.tolist() == [[0, 1, 2]]
    assert weights.tolist() == [[0.0, 0.0, 0.0]]


def test_more_experts_than_the_groups_kept_have(device: torch.device) -> None:
    logits = torch.arange(12.0, device=device)[None] / 8
    config = RoutingConfig(groups=4, groups_kept=1)
    expected = router_says(logits, 5, config, None)
    weights, experts = route_experts(logits, **arguments(config, 5))
    assert experts.tolist() == expected[1].tolist() == [[11, 10, 9, 0, 1]]
    torch.testing.assert_close(weights, expected[0])


def test_rows_of_a_wider_tensor_and_other_dtypes(device: torch.device, wide: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    drawn = torch.tensor(rng.integers(-40, 40, (6, 50)) / 8, dtype=wide, device=device)
    logits = drawn[:, 3:43]
    expected = router_says(logits.float(), 4, PLAIN, None)
    weights, experts = route_experts(logits, k=4, dtype=wide)
    assert weights.dtype == wide
    assert experts.tolist() == expected[1].tolist()
    torch.testing.assert_close(weights.float(), expected[0], rtol=1e-2, atol=1e-3)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_numbers_are_distinct_and_valid_even_of_nan(device: torch.device) -> None:
    """Rows of nothing (padding) may hold anything: what comes out must be safe to index with."""
    logits = torch.full((2, 24), torch.nan, device=device)
    logits[1, :5] = torch.inf
    for config in (PLAIN, replace(PLAIN, groups=4, groups_kept=2)):
        experts = route_experts(logits, **arguments(config, 6))[1]
        for row in experts.tolist():
            assert len(set(row)) == 6
            assert all(0 <= e < 24 for e in row)
    for row in route_experts(logits.bfloat16(), k=6)[1].tolist():
        assert len(set(row)) == 6
        assert all(0 <= e < 24 for e in row)


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "gpt-oss", "one", "all", "wide"])
def test_short_keys_of_bfloat16(name: str, device: torch.device) -> None:
    """Ties, both zeros and infinities; scores that a softmax cannot tell apart go by the logits."""
    num_experts, k, config = FAMILIES[name]
    rng = np.random.default_rng(3)
    for rows in (1, 17, 65):
        wider = torch.tensor(rng.integers(-12, 13, (rows, num_experts + 3)) / 4, device=device)
        wider[::5] *= -0.0
        wider[1::5, (num_experts + 1) // 2 :] = -torch.inf
        logits = wider.bfloat16()[:, :num_experts]
        given = arguments(config, k)
        out = poisoned(rows, k, device)
        weights, experts = route_experts(logits, out=out, **given)
        expected = route_experts_reference(logits, **given)
        fine = expected[0] > 0  # of scores of nothing the reference takes the lowest numbers
        assert torch.equal(experts[fine], expected[1][fine])
        torch.testing.assert_close(weights, expected[0], rtol=1e-5, atol=1e-7)
    close = torch.tensor([[0.0, 1e-9, 2e-9, -1e-9, 1e-9]], dtype=torch.bfloat16, device=device)
    assert route_experts(close, k=3)[1].tolist() == [[2, 1, 4]]


def test_no_tokens_and_the_work(device: torch.device) -> None:
    weights, experts = route_experts(torch.empty(0, 16, device=device), k=2)
    assert weights.shape == experts.shape == (0, 2)
    assert route_experts_work(torch.empty(4, 16, device=device), 2).bytes == 4 * 16 * 4 + 4 * 2 * 8
