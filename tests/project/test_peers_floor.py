"""The least time that ceilings allow for a batch, held against sums by hand."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"
DENSE = {
    "model_type": "qwen3",
    "max_position_embeddings": 4096,
    "hidden_size": 32,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "vocab_size": 100,
}
SPARSE = DENSE | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


def load() -> ModuleType:
    name = "peers_floor"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "floor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


def seconds(
    config: dict[str, Any], rows: list[tuple[int, int]], flops: float, bytes_s: float
) -> Any:
    requests = [{"prompt": [1] * prompt, "max_tokens": output} for prompt, output in rows]
    return load().floor_s(config, requests, flops, bytes_s)


def test_one_row_of_a_dense_model_by_hand() -> None:
    """A prompt of 5 and 3 tokens out; endless memory, then endless products."""
    q, kv, hidden = 32, 32, 32
    mlp = 3 * hidden * 48
    passes = 5 + 5 + 1 + 2 * 3  # tokens through layers: the last one takes the last prompt token
    by_flops = seconds(DENSE, [(5, 3)], 1.0, 1e30)
    assert by_flops["mlp"] == 2 * mlp * passes
    assert by_flops["projections"] == 2 * hidden * (2 * q * passes + kv * (5 * 3 + 2 * 3))
    assert by_flops["attention"] == 4 * q * (15 + 15 + 5 + 3 * (6 + 7))
    assert by_flops["head"] == 2 * hidden * 100 * 3
    by_memory = seconds(DENSE, [(5, 3)], 1e30, 2.0)  # bytes/s: one element a second
    assert by_memory["mlp"] == pytest.approx(mlp * 9)  # three passes of three layers
    assert by_memory["attention"] == pytest.approx(kv * 3 * (6 + 7))
    assert by_memory["head"] == pytest.approx(hidden * 100 * 3)


def test_experts_are_read_as_far_as_they_are_touched() -> None:
    weights = 3 * 32 * 16
    by_flops = seconds(SPARSE, [(5, 1)], 1.0, 1e30)
    assert by_flops["experts"] == 2 * weights * 2 * (5 + 5 + 1)
    by_memory = seconds(SPARSE, [(5, 1)], 1e30, 2.0)
    touched = [8 * (1 - 0.75**tokens) for tokens in (5, 5, 1)]
    assert by_memory["experts"] == pytest.approx(weights * sum(touched))


def test_a_faster_machine_and_a_smaller_batch_allow_less_time() -> None:
    rng = random.Random(1)
    for config in (DENSE, SPARSE):
        for _ in range(20):
            rows = [(rng.randint(1, 40), rng.randint(1, 20)) for _ in range(rng.randint(1, 6))]
            flops, memory = 10 ** rng.uniform(3, 9), 10 ** rng.uniform(3, 9)
            least = sum(seconds(config, rows, flops, memory).values())
            assert sum(seconds(config, rows, 2 * flops, memory).values()) <= least
            assert sum(seconds(config, rows, flops, 2 * memory).values()) <= least
            assert sum(seconds(config, rows, flops / 2, memory / 2).values()) == pytest.approx(
                2 * least
            )
            assert sum(seconds(config, rows[1:] or rows, flops, memory).values()) <= least
