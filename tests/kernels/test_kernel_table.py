"""Lines of the kernel table call kernels as they are: each factory at a small shape, anywhere.

What the calls give is checked by the kernels' own tests; here they only have to run.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from batchgen.exec.kernels.launching import observed

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
NAMES = ("cell", "shapes_attention", "shapes_experts", "shapes_small")
SMALL: dict[str, Callable[[Any], Any]] = {
    "decode": lambda m: m["shapes_attention"].decode(2, 70, 4, 2, 32),
    "decode ragged": lambda m: m["shapes_attention"].decode(2, 70, 4, 2, 32, ragged=True),
    "decode latent": lambda m: m["shapes_attention"].decode(2, 70, 4, 1, 48, 32),
    "prefill": lambda m: m["shapes_attention"].prefill(20, 0, 4, 2, 32),
    "prefill behind": lambda m: m["shapes_attention"].prefill(20, 50, 4, 2, 32),
    "experts": lambda m: m["shapes_experts"].mixture(5, tiny(m), m["cell"].COPY, None),
    "layer": lambda m: m["shapes_experts"].whole(5, tiny(m), m["cell"].COPY),
    "norm": lambda m: m["shapes_small"].norm(64, 9),
    "added norm": lambda m: m["shapes_small"].added_norm(64, 9),
    "swiglu": lambda m: m["shapes_small"].gated(9, 64),
    "place": lambda m: m["shapes_small"].placed(4, 2, 32, tokens=10, rows=2),
    "route": lambda m: m["shapes_small"].routed(9, 16, 2),
    "greedy": lambda m: m["shapes_small"].sampled(3, 300, draws=False),
    "draws": lambda m: m["shapes_small"].sampled(3, 300, draws=True),
}


def tiny(modules: dict[str, ModuleType]) -> Any:
    return modules["shapes_experts"].Mixture(experts=4, k=2, hidden=32, width=32)


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", list(SMALL))
def test_a_line_runs(modules: dict[str, ModuleType], name: str, device: torch.device) -> None:
    made = SMALL[name](modules).make(device, 0)
    made.call()
    assert made.work.bytes > 0
    if made.other is not None and "expert" not in name:  # grouped_mm of bf16 is for GPUs
        made.other()


TUNED = {
    "decode": {"decode_attention"},
    "decode latent": {"decode_attention"},
    "prefill": {"prefill_attention"},
    "experts": {"experts"},
    "place": {"place_qkv"},
    "route": {"route_short"},
    "draws": {"sample_tops", "sample_choose", "sample_search"},
}


@pytest.mark.parametrize("name", list(TUNED))
def test_what_a_tuner_changes_is_what_kernels_ask_for(
    modules: dict[str, ModuleType], name: str, device: torch.device
) -> None:
    """One bucket of each kernel, and no name that it does not know."""
    every = [one for module in NAMES[1:] for one in modules[module].TUNE]
    assert {one.kernel for one in every} == set().union(*TUNED.values())
    tunes = [one for one in every if one.kernel in TUNED[name]]
    call = SMALL[name](modules).make(device, 0).call
    with observed() as asked:
        call()
    for one in tunes:
        (own,) = [values for (kernel, _), values in asked.items() if kernel == one.kernel]
        assert all(change.keys() <= own.keys() for change in one.changes)


def test_tuned_shapes_have_buckets_of_their_own(modules: dict[str, ModuleType]) -> None:
    every = [one for module in NAMES[1:] for one in modules[module].TUNE]
    assert len({(one.kernel, one.shape) for one in every}) == len(every)


def test_lines_are_told_apart(modules: dict[str, ModuleType]) -> None:
    cells = [cell for name in NAMES[1:] for cell in modules[name].CELLS]
    assert len({(cell.kernel, cell.shape) for cell in cells}) == len(cells)
    assert {cell.ceiling for cell in cells} == {modules["cell"].COPY, modules["cell"].MATMUL}


def test_shares_are_of_what_the_ceilings_allow(modules: dict[str, ModuleType]) -> None:
    cell = modules["cell"]
    ceilings = {cell.COPY: 4e12, cell.MATMUL: 8e14}
    work = importlib.import_module("batchgen.exec.kernels.launching").Work(8e11, 2e9)
    found = cell.shares(work, 2e-3, cell.COPY, ceilings)
    # 2 GB take 0.5 ms, 0.8 TFLOP 1 ms: the floor is by FLOPs.
    assert math.isclose(found["share"], 0.25)
    assert math.isclose(found["floor_share"], 0.5)


def test_a_line_that_fails_says_why(modules: dict[str, ModuleType], device: torch.device) -> None:
    cell = modules["cell"]

    def make(device: torch.device, seed: int) -> Any:
        raise torch.OutOfMemoryError("much")

    one = cell.Cell(kernel="k", shape="s", make=make)
    line = cell.measure(one, device, {cell.COPY: 1.0, cell.MATMUL: 1.0})
    assert line["error"] == "OutOfMemoryError: much"
    assert "seconds" not in line
