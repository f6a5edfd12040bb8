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


def test_a_product_uses_tensor_cores_and_a_sum_does_not() -> None:
    code, (product, double), errors = compiled("--target", "sm_90", "ahead_kernels")
    assert (code, errors) == (0, "")
    assert product["num_products"] > 0
    # Both operands of a step: 128 x 64 numbers of 2 bytes.
    assert product["shared_bytes"] >= 2 * 128 * 64 * 2
    assert double["num_products"] == double["shared_bytes"] == double["spill_bytes"] == 0
    assert 0 < double["registers"] <= product["registers"] <= 255


def test_each_fault_is_named() -> None:
    code, cases, errors = compiled("--target", "sm_90", "ahead_faults")
    assert code == 1
    faults = {case["case"]: " and ".join(case["faults"]) for case in cases}
    assert "Insufficient registers" in faults["assembler"]
    assert "spills" in faults["shared memory"]
    assert "there are 232448" in faults["shared memory"]
    assert "has no wgmma" in faults["idle tensor cores"]
    assert "differ in BLOCK" in faults["no such type"]
    assert "not for sm_90" not in faults
    assert all(f"ahead_faults {name} sm_90: " in errors for name in faults)


def test_a_table_names_each_target_once() -> None:
    rows: Sequence[ahead.Compiled] = [
        ahead.Compiled(
            module="m", case="c", target=target, num_warps=4, num_stages=2, registers=number
        )
        for number, target in enumerate(ahead.TARGETS, 30)
    ]
    head, _, line = ahead.table(rows).splitlines()
    assert "sm_80 / sm_90 / sm_100" in head
    assert "| 30 / 31 / 32 |" in line
