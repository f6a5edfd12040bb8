"""The same run gives the same log, byte for byte, in another process with another hash seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from core_cases import NAMES, Case, Row, run

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_core_determinism import digest
print(digest(sys.argv[2]))
"""


def busy(preset: str) -> Case:
    rows = tuple(
        Row(
            prompt=1 + index * 7 % 50,
            budget=60,
            output=1 + index * 11 % 60,
            arrival=index % 3 * 90_000,
            group=index % 3,
            shared=8,
        )
        for index in range(30)
    )
    return Case(
        preset=preset,
        rows=rows,
        engines=2,
        ranks=2,
        engines_per_node=2,
        hbm_pages=25,
        host_pages=60,
        prefix=preset == "vllm",
        troubles=(("lost", 300_000, 1, 0), ("cancel", 200_000, 3, 9), ("back", 500_000, 1, 0)),
    )


def digest(preset: str) -> str:
    outcome = run(busy(preset))
    assert len(outcome.log) > 20
    return hashlib.sha256(b"\n".join(outcome.log)).hexdigest()


def test_logs_do_not_depend_on_the_process() -> None:
    for preset in NAMES:
        assert digest(preset) == digest(preset)


@pytest.mark.parametrize("preset", ["vllm", "batchgen"])
def test_logs_do_not_depend_on_the_hash_seed(preset: str) -> None:
    here = str(Path(__file__).parent)
    found = {digest(preset)}
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, here, preset]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        found.add(done.stdout.strip())
    assert len(found) == 1
