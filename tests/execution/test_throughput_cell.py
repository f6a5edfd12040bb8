"""Cells of throughput on the CPU: a tiny model goes through all that a large one does on a GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
NAMES = ("loads", "shares", "throughput", "qwen_config", "peer")
TINY = {
    "vocab_size": 300,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CEILINGS = {"matmul_bf16": 1e15, "device_copy": 1e13}


@pytest.fixture
def modules() -> Iterator[dict[str, ModuleType]]:
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        found = {name: importlib.import_module(name) for name in NAMES}
        found["loads"].MODELS["tiny"] = found["qwen_config"].qwen_config(**TINY)
        yield found
    finally:
        sys.path[:] = before
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_a_whole_job_is_measured(modules: dict[str, ModuleType], sigma: float) -> None:
    load = modules["loads"].Load(model="tiny", prompt_tokens=12, output_tokens=9, sigma=sigma)
    found = modules["throughput"].run(load, policy="vllm", seconds=60.0, device="cpu", rows=7)
    _, outputs = modules["loads"].lengths(load, 7)
    line = modules["shares"].summary(found, load, CEILINGS)
    assert line["whole"]
    assert line["seats"] == 7
    ghosts = 7  # an end is known a pass late
    assert line["output_tokens"] == outputs.sum() + ghosts
    assert len(line["first_passes"]["launch_ms"]) == line["passes"]
    assert line["beside"]["median_launch_ms"] > 0
    # The job's bound is of the same passes but for ghosts: budgets and seats are the same.
    share = line["all"]["share_of_its_passes_bound"]
    assert 0.8 * share < line["job"]["share"] <= share < 1


def test_a_job_ends_when_its_time_is_over(modules: dict[str, ModuleType]) -> None:
    load = modules["loads"].Load(model="tiny", prompt_tokens=12, output_tokens=90)
    found = modules["throughput"].run(load, policy="vllm", seconds=0.0, device="cpu", rows=9)
    line = modules["shares"].summary(found, load, CEILINGS)
    assert not line["whole"]
    found = modules["throughput"].run(
        load, policy="vllm", seconds=60.0, device="cpu", rows=3, before_s=0.05
    )
    line = modules["shares"].summary(found, load, CEILINGS)
    assert line["whole"]
    assert line["output_tokens"] == 3 * 91
    assert line["first_passes_before"]["ms"]
    line = modules["shares"].summary(
        modules["throughput"].run(load, policy="vllm", seconds=0.0, device="cpu", rows=9),
        load,
        CEILINGS,
    )
    assert 0 <= line["output_tokens"] < 9 * 90


def test_two_systems_do_the_same_requests(modules: dict[str, ModuleType]) -> None:
    """Whole runs by both; and what transformers has produced when it is cut."""
    load = modules["loads"].Load(model="tiny", prompt_tokens=12, output_tokens=9, sigma=0.5)
    _, outputs = modules["loads"].lengths(load, 5)
    ways = (modules["peer"].by_batchgen, modules["peer"].by_transformers)
    found = [way(load, 5, 60.0, "cpu") for way in ways]
    assert [one["tokens"] for one in found] == [outputs.sum()] * 2
    assert all(one["whole"] and one["seconds"] > 0 for one in found)
