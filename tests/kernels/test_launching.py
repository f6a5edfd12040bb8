"""Configurations of kernels: what was measured for this GPU, else what the kernel says."""

from __future__ import annotations

from batchgen.exec.kernels.launching import config


def test_a_kernel_that_nobody_measured_runs_with_its_own_numbers() -> None:
    assert config("nothing", "any", {"BLOCK": 64}) == {"BLOCK": 64}
