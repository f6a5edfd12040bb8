"""Kernels compiled without a GPU: all of the package for sm_90, and what must be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batchgen.exec.kernels import ahead
from batchgen.exec.kernels.launching import HOPPER, AheadCase, Capability, cases_by_capability

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def compiled(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, cases and stderr of the command, in the environment of these tests: it has to
    leave the interpreter by itself."""
    path = os.pathsep.join([str(ROOT), str(HERE)])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "batchgen.exec.kernels.ahead", "--json", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["cases"], done.stderr


def table_cells() -> dict[tuple[str, str], list[str]]:
    """Cells of the table in docs by kernel and case."""
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    body = text.split(f"<!-- {ahead.MARK}: ")[1].split(f"<!-- /{ahead.MARK} -->")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0].strip("`"), row[1]): row[2:] for row in rows}


@pytest.mark.timeout(900)  # about two seconds a case on one core, once: Triton keeps what it made
def test_all_kernels_compile_for_sm_90_and_docs_say_what_came_out() -> None:
    code, cases, errors = compiled("--target", "sm_90")
    assert code == 0, errors
    written = table_cells()
    again = "python -m batchgen.exec.kernels.ahead --table docs/kernels.md"
    assert written.keys() == {(case["module"], case["case"]) for case in cases}, again
    for case in cases:
        # sm_80 / sm_90 / sm_100, or one number for all
        numbers = (cell.split("/") for cell in written[case["module"], case["case"]])
        of_ours = [several[len(several) // 2].strip() for several in numbers]
        found = [case[name] for name in ("num_warps", "num_stages", "registers")]
        found += [f"{case['shared_bytes'] / 1024:.1f}", case["num_products"]]
        assert of_ours == list(map(str, found)), (again, case["module"])


def test_tensor_cores_registers_and_each_fault_are_named() -> None:
    code, cases, errors = compiled("--target", "sm_90", "ahead_kernels", "ahead_faults")
    assert code == 1
    product, double, *refused = cases
    assert product["faults"] == double["faults"] == []
    assert product["num_products"] > 0
    # Both operands of a step: 128 x 64 numbers of 2 bytes.
    assert product["shared_bytes"] >= 2 * 128 * 64 * 2
    assert double["num_products"] == double["shared_bytes"] == double["spill_bytes"] == 0
    assert 0 < double["registers"] <= product["registers"] <= 255

    faults = {case["case"]: " and ".join(case["faults"]) for case in refused}
    assert "Insufficient registers" in faults["assembler"]
    assert "spills" in faults["shared memory"]
    assert "there are 232448" in faults["shared memory"]
    assert "has no wgmma" in faults["idle tensor cores"]
    assert "differ in BLOCK" in faults["no such type"]
    assert "not for sm_90" not in faults
    assert all(f"ahead_faults {name} sm_90: " in errors for name in faults)
    assert "ahead_kernels" not in errors


def test_a_table_names_each_target_once() -> None:
    rows: Sequence[ahead.Compiled] = [
        ahead.Compiled(
            module="m",
            case="c",
            target=target,
            num_warps=4,
            num_stages=number // 31 + 1,
            registers=number,
        )
        for number, target in enumerate(ahead.TARGETS, 30)
    ]
    head, _, line = ahead.table(rows).splitlines()
    assert "sm_80 / sm_90 / sm_100" in head
    assert "| 4 | 1 / 2 / 2 | 30 / 31 / 32 |" in line


def test_gpus_of_one_choice_of_tiles_share_a_case() -> None:
    def make(gpu: Capability) -> AheadCase:
        return AheadCase(
            name="c", kernel=None, signature={}, constants={"B": int(gpu == HOPPER)}, num_warps=8
        )

    cases = cases_by_capability(make)
    assert [case.capabilities for case in cases] == [(80, 100), (90,)]
    assert [case.constants["B"] for case in cases] == [0, 1]
