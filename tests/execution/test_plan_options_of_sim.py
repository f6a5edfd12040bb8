"""Options of the plan that only the simulator knows are refused by name, never ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.errors import UserError
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import check_options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan.max_context", "100"),
        ("plan.row_bytes", "5"),
        ("plan.gpu_batches", "2"),
        ("plan.resident_share", "0.5"),
        ("plan.weights", "spill"),
        ("plan.kv", "host"),
        ("plan.prefill_engines", "1"),
        ("plan.memory_fraction", "0.5"),
    ],
)
def test_it_is_refused_by_name(name: str, value: str) -> None:
    job = ExecJob(model=Path("m"), input=Path("i"), output=Path("o"), overrides=((name, value),))
    with pytest.raises(UserError, match=name):
        check_options(job)


@pytest.mark.parametrize(
    "policy", ["flexgen", "moe-lightning", "zero-inference", "vllm-cpu-offload"]
)
def test_a_system_that_streams_weights_is_refused_by_its_own_name(policy: str) -> None:
    """The user has set nothing."""
    job = ExecJob(model=Path("m"), input=Path("i"), output=Path("o"), policy=policy)
    with pytest.raises(UserError, match=f"^{policy} streams weights") as caught:
        check_options(job)
    assert "--set" not in str(caught.value)
