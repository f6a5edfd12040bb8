"""The runner for GPUs on queues that work late: nothing runs before somebody waits for it.

Whatever the host hands over too early, or takes back too soon, gives wrong tokens here. The model
runs on the CPU, by the CPU's own attention.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exec_cases import Case, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_driver_properties import ARCHS, cases, check_outcome

from batchgen.exec.gpu.worker import QueuedWorker
from batchgen.exec.init import init_model

LATE = {"make": QueuedWorker, "ahead": True}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("queued")
    return {arch: init_model(folder / arch, arch, "tiny", seed=3) for arch in ARCHS}


@settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases(), arch=st.sampled_from(ARCHS))
def test_rows_end_with_their_own_answers(
    case: Case, arch: str, models: dict[str, Path], tmp_path: Path
) -> None:
    outcome = run(replace(case, depth=2), models[arch], tmp_path, **LATE)
    check_outcome(replace(case, depth=2), outcome, models[arch])


def test_passes_are_launched_before_those_before_them_have_ended(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """And ends by tokens come a pass late: the ghosts of the last ones are counted."""
    case = Case(policy="vllm", rows=((1, 40), (2, 40), (3, 9)), hbm_pages=40, depth=2)
    most: list[int] = []

    def watch(worker: QueuedWorker) -> None:
        launch = worker.launch_pass

        def launched(*args):  # type: ignore[no-untyped-def]
            flight = launch(*args)
            most.append(len(worker._flights))
            return flight

        worker.launch_pass = launched  # type: ignore[method-assign]

    run(case, models["llama"], tmp_path, tweak=watch, **LATE)
    assert max(most) == 2
    assert most.count(2) > len(most) // 2


@pytest.mark.parametrize("policy", ["vllm", "batchgen"])
def test_scarce_memory_with_passes_in_flight(
    policy: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """Pages are freed, copied and taken again while passes that were launched before use them."""
    case = Case(
        policy=policy,
        rows=tuple((number, 48) for number in range(12)),
        hbm_pages=24,
        host_pages=300 if policy == "batchgen" else 0,
        depth=2,
    )
    outcome = run(case, models["qwen3"], tmp_path, **LATE)
    check_outcome(case, outcome, models["qwen3"])
    table = outcome.prepared.table
    assert int((table.suspensions if policy == "batchgen" else table.preemptions).sum()) > 3


def test_a_row_without_finite_logits_fails_alone(models: dict[str, Path], tmp_path: Path) -> None:
    """The next pass is in flight when that is known, with what the row's token should have been."""
    case = Case(
        policy="vllm", rows=((1, 20), (2, 20), (3, 20)), hbm_pages=40, depth=2, ignore_eos=True
    )

    def spoil(worker: QueuedWorker) -> None:
        made, passes = worker.model.logits, [0]

        def logits(hidden: torch.Tensor) -> torch.Tensor:
            found = made(hidden)
            passes[0] += len(found) == 3
            if passes[0] == 5 and len(found) == 3:
                found[1] = float("nan")
            return found

        worker.model.logits = logits  # type: ignore[method-assign]

    outcome = run(case, models["llama"], tmp_path, tweak=spoil, **LATE)
    assert sorted(outcome.reasons.values()) == ["length", "length", "non_finite_logits"]
