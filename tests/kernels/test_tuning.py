"""Configurations are chosen by time, kept by GPU and Triton, and shipped as what kernels say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchgen.exec.kernels import tuning
from batchgen.exec.kernels.launching import CONFIGS, Work, config, configs_for
from batchgen.exec.kernels.timing import Call, median_s, num_copies

CPU = torch.device("cpu")
OWN = {"BLOCK": 64, "num_warps": 4}
Change = Mapping[str, int]


def line(changes: Sequence[Change], asked: list[int]) -> tuning.Tune:
    """A kernel whose calls note the BLOCK that they were given; a negative one does not run."""

    def make(device: torch.device, seed: int) -> tuple[Call, Work]:
        def call() -> None:
            config("another", "bucket", {"BLOCK": 1})
            block = config("kernel", "bucket", OWN)["BLOCK"]
            asked.append(block)
            if block < 0:
                raise ValueError("too much shared memory")

        return call, Work(1.0, 1.0)

    return tuning.Tune(kernel="kernel", shape="any", changes=changes, make=make)


def tuned(changes: Sequence[Change], seconds: Mapping[int, float]) -> tuning.Tuned:
    asked: list[int] = []

    def time_s(calls: Sequence[Call]) -> float:
        assert len(calls) == 3
        for call in calls:
            call()
        return seconds[asked[-1]]

    result = tuning.tune(line(changes, asked), CPU, time_s, lambda bytes_of_call, device: 3)
    assert config("kernel", "bucket", OWN) == OWN  # nothing stays behind
    return result


@given(st.lists(st.floats(1e-6, 1e-3), min_size=1, max_size=6))
def test_the_shortest_wins_unless_the_kernels_own_is_as_good(times: list[float]) -> None:
    changes = [{"BLOCK": 64 + i} for i in range(1, len(times))]
    result = tuned(changes, {64 + i: time for i, time in enumerate(times)})
    assert result.seconds == tuple(times)
    assert (result.bucket, result.best_s) == ("bucket", min(times))
    assert result.values.keys() == OWN.keys()
    won = times[result.values["BLOCK"] - 64]
    assert won == (min(times) if min(times) <= times[0] * (1 - tuning.MARGIN) else times[0])


def test_a_change_that_does_not_run_is_passed_over() -> None:
    result = tuned([{"BLOCK": -1}, {"BLOCK": 128}, {"WARPS": 8}], {64: 2e-3, 128: 1e-3})
    assert dict(result.values) == OWN | {"BLOCK": 128}
    assert len(result.errors) == 2
    assert "too much shared memory" in result.errors[0]
    assert "the kernel has BLOCK, num_warps alone" in result.errors[1]
    assert tuning.configs_of([result]) == {"kernel": {"bucket": OWN | {"BLOCK": 128}}}


def test_a_kernel_that_asks_for_nothing_cannot_be_tuned() -> None:
    silent = tuning.Tune(kernel="other", shape="any", changes=(), make=line((), []).make)
    with pytest.raises(ValueError, match="asks for 0 buckets"):
        tuning.tune(silent, CPU, lambda calls: 1.0, lambda bytes_of_call, device: 1)


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def test_files_are_found_by_gpu_and_ignored_by_another_triton(tmp_path: Path) -> None:
    kernels = {"kernel": {"bucket": {"BLOCK": 32}}}
    content = tuning.document(kernels, "3.6.0", "a test", True)
    write(tmp_path / "nvidia-h100.json", content)
    write(tmp_path / "nvidia-h100-pcie.json", content | {"kernels": {}})
    assert configs_for("NVIDIA H100 80GB HBM3", "3.6.0", tmp_path) == kernels
    assert configs_for("NVIDIA H100 80GB HBM3", "3.7.0", tmp_path) == {}
    assert configs_for("NVIDIA H100 PCIe", "3.6.0", tmp_path) == {}
    assert configs_for("NVIDIA H200", "3.6.0", tmp_path) == {}


def test_buckets_measured_before_stay(tmp_path: Path) -> None:
    path = tmp_path / "nvidia-h200.json"
    new = {"b": {"x": {"BLOCK": 2}}}
    assert tuning.merged(path, new, "3.6.0") == new
    old = {"a": {"x": {"BLOCK": 1}}, "b": {"y": {"BLOCK": 1}, "x": {"BLOCK": 1}}}
    write(path, tuning.document(old, "3.6.0", "a test", True))
    assert tuning.merged(path, new, "3.6.0") == {
        "a": {"x": {"BLOCK": 1}},
        "b": {"y": {"BLOCK": 1}, "x": {"BLOCK": 2}},
    }
    assert tuning.merged(path, new, "3.7.0") == new
    write(path, tuning.document(old, "3.6.0", "a test", False))
    assert tuning.merged(path, new, "3.6.0") == new


@pytest.mark.parametrize("gpu", tuning.GPUS)
def test_what_is_shipped_is_measured_or_nothing(gpu: str) -> None:
    content = json.loads((CONFIGS / f"{gpu}.json").read_text(encoding="utf-8"))
    assert content["triton"] == "3.6.0"
    if content["measured"]:
        assert content["source"].startswith(tuning.MADE_ON)
    else:
        assert (content["source"], content["kernels"]) == (tuning.HEURISTIC, {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_the_command_refuses_without_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "batchgen", "bench", "tune"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: this machine has no CUDA device to tune for; ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.gpu
def test_a_copy_takes_as_long_as_its_bytes(device: torch.device) -> None:
    """Ten times the bytes, five to twenty times as long; neither comes from the cache."""
    times = []
    for num in (1 << 24, 10 << 24):
        copies = num_copies(8.0 * num, device)
        pairs = [(torch.empty(num, device=device), torch.ones(num, device=device))]
        pairs += [(torch.empty_like(a), torch.ones_like(b)) for a, b in pairs * (copies - 1)]
        times.append(median_s([lambda a=a, b=b: a.copy_(b) for a, b in pairs]))
    assert 5 < times[1] / times[0] < 20
