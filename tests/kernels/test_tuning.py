"""Configurations are chosen by time, kept by GPU and Triton, and shipped as what kernels say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st

from batchgen.exec.kernels import tuning
from batchgen.exec.kernels.ahead import kernel_modules
from batchgen.exec.kernels.launching import CONFIGS, Work, config, configs_for
from batchgen.exec.kernels.timing import Call, median_s, num_copies

CPU = torch.device("cpu")
OWN = {"BLOCK": 64, "num_warps": 4}


def one(candidates: Sequence[Mapping[str, int]], asked: list[int]) -> tuning.Tune:
    """A bucket whose calls note the BLOCK that they were given; a negative one does not run."""

    def make(device: torch.device, seed: int) -> tuple[Call, Work]:
        def call() -> None:
            block = config("kernel", "bucket", OWN)["BLOCK"]
            asked.append(block)
            if block < 0:
                raise ValueError("too much shared memory")

        return call, Work(1.0, 1.0)

    return tuning.Tune(kernel="kernel", bucket="bucket", candidates=candidates, make=make)


def tuned(candidates: Sequence[Mapping[str, int]], seconds: Mapping[int, float]) -> tuning.Tuned:
    asked: list[int] = []

    def time_s(calls: Sequence[Call]) -> float:
        for call in calls:
            call()
        return seconds[asked[-1]]

    made = one(candidates, asked)
    (result,) = tuning.tune([made], CPU, time_s, lambda bytes_of_call, device: 3)
    assert all(
        asked.count(values["BLOCK"]) % 3 == 0 for values in candidates if values["BLOCK"] > 0
    )
    assert config("kernel", "bucket", OWN) == OWN  # nothing stays behind
    return result


@given(st.lists(st.floats(1e-6, 1e-3), min_size=1, max_size=6))
def test_the_shortest_wins_unless_the_kernels_own_is_as_good(times: list[float]) -> None:
    candidates = [{"BLOCK": 64 + i} for i in range(len(times))]
    result = tuned(candidates, {64 + i: time for i, time in enumerate(times)})
    assert result.seconds == tuple(times)
    if min(times) <= times[0] * (1 - tuning.MARGIN):
        assert times[result.chosen] == min(times)
    else:
        assert result.chosen == 0


def test_a_candidate_that_does_not_run_is_passed_over() -> None:
    candidates = [{"BLOCK": -1}, {"BLOCK": 64}, {"BLOCK": -2}]
    result = tuned(candidates, {64: 1e-3})
    assert result.chosen == 1
    assert len(result.errors) == 2
    assert "shared memory" in result.errors[0]
    failed = tuned([{"BLOCK": -1}], {})
    assert tuning.chosen([one([{"BLOCK": -1}], [])], [failed]) == {}


def test_files_are_found_by_gpu_and_ignored_by_another_triton(tmp_path: Path) -> None:
    kernels = {"kernel": {"bucket": {"BLOCK": 32}}}
    content = tuning.document(kernels, "3.6.0", "a test", True)
    tuning.write(tmp_path / "nvidia-h100.json", content)
    tuning.write(tmp_path / "nvidia-h100-pcie.json", content | {"kernels": {}})
    assert configs_for("NVIDIA H100 80GB HBM3", "3.6.0", tmp_path) == kernels
    assert configs_for("NVIDIA H100 80GB HBM3", "3.7.0", tmp_path) == {}
    assert configs_for("NVIDIA H100 PCIe", "3.6.0", tmp_path) == {}
    assert configs_for("NVIDIA H200", "3.6.0", tmp_path) == {}


def test_buckets_measured_before_stay(tmp_path: Path) -> None:
    path = tmp_path / "nvidia-h200.json"
    new = {"b": {"x": {"BLOCK": 2}}}
    assert tuning.merged(path, new, "3.6.0") == new
    old = {"a": {"x": {"BLOCK": 1}}, "b": {"y": {"BLOCK": 1}, "x": {"BLOCK": 1}}}
    tuning.write(path, tuning.document(old, "3.6.0", "a test", True))
    assert tuning.merged(path, new, "3.6.0") == {
        "a": {"x": {"BLOCK": 1}},
        "b": {"y": {"BLOCK": 1}, "x": {"BLOCK": 2}},
    }
    assert tuning.merged(path, new, "3.7.0") == new
    tuning.write(path, tuning.document(old, "3.6.0", "a test", False))
    assert tuning.merged(path, new, "3.6.0") == new


@pytest.mark.parametrize("gpu", tuning.GPUS)
def test_what_is_shipped_is_measured_or_what_kernels_say(gpu: str) -> None:
    content = json.loads((CONFIGS / f"{gpu}.json").read_text(encoding="utf-8"))
    assert content["triton"] == "3.6.0"
    own = tuning.defaults(tuning.find_tunes(kernel_modules()))
    if not content["measured"]:
        again = "python -m batchgen bench tune --defaults exec/kernels/configs"
        assert (content["source"], content["kernels"]) == (tuning.HEURISTIC, own), again
    for kernel, buckets in content["kernels"].items():
        for bucket, values in buckets.items():
            assert values.keys() == own[kernel][bucket].keys(), (kernel, bucket)


def test_first_candidates_are_what_kernels_use_by_themselves() -> None:
    """Each once, and none changes what it is a candidate for."""
    for found in tuning.find_tunes(kernel_modules()):
        first, *others = (dict(values) for values in found.candidates)
        assert all(values.keys() == first.keys() for values in others), found.bucket
        assert first not in others, found.bucket


def bench_tune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "batchgen", "bench", "tune", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_the_command_refuses_without_a_gpu_and_writes_defaults(tmp_path: Path) -> None:
    done = bench_tune()
    assert done.returncode == 2
    assert done.stderr.startswith("error: this machine has no CUDA device to tune for; ")
    assert len(done.stderr.splitlines()) == 1
    done = bench_tune("--defaults", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in tmp_path.iterdir()) == list(tuning.GPUS)
    for path in tmp_path.iterdir():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert (content["triton"], content["measured"]) == (triton.__version__, False)


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
