"""Factors on the fits of other GPUs: interpolation, files that are wrong, what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.cost.operators.kernels import Kernels
from batchgen.cost.operators.offsets import binned, factor, load, shipped
from batchgen.errors import DataError
from batchgen.hardware import load_gpu

OTHERS = Path(__file__).parents[3] / "shared/traces/llmservingsim_vllm_groundtruth"


def test_factors_are_linear_in_logarithms() -> None:
    offsets = {("gemm", "x"): (np.array([2.0, 4.0]), np.log([2.0, 8.0]))}
    columns = {"m": np.array([1.0, 4.0, 8.0, 16.0, 999.0])}
    assert factor(offsets, "gemm", "x", columns).tolist() == pytest.approx([2, 2, 4, 8, 8])
    assert factor(offsets, "gemm", "y", columns) == 1.0
    sizes, measured = np.array([3.9, 4.2, 16.0]), np.array([1.0, 3.0, 5.0])
    assert binned(sizes, measured, np.array([2.0, 2.0, 1.0])) == {"2": 1.0, "4": 5.0}


def test_kernels_of_a_profiled_gpu_differ_from_those_of_the_fits() -> None:
    gpu = load_gpu("rtx-4090")
    plain, own = Kernels(gpu, offsets={}), Kernels(gpu)
    ratio = own.gemm(1024, 4096, 4096, "bf16") / plain.gemm(1024, 4096, 4096, "bf16")
    _, logs = shipped()["gemm", "rtx-4090"]
    assert float(ratio) == pytest.approx(np.exp(logs[10]))
    h100 = load_gpu("h100")
    same = Kernels(h100).gemm(64, 4096, 4096, "bf16")
    assert float(same) == float(Kernels(h100, offsets={}).gemm(64, 4096, 4096, "bf16"))


@pytest.mark.parametrize(
    "text", ["", "{}", '{"factors": {"x": {"gemm": {"1": 0}}}}', '{"factors": {"x": {"gemm": {}}}}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "o.json").write_text(text)
    with pytest.raises(DataError, match="holds no factors of kernels"):
        load(tmp_path / "o.json")


@pytest.mark.skipif(not OTHERS.is_dir(), reason="the profiles are not here")
def test_what_is_shipped_is_what_the_command_makes(tmp_path: Path) -> None:
    target = tmp_path / "o.json"
    assert main(["bench", "engines", "--data", str(OTHERS), "--factors", str(target)]) == 0
    made = json.loads(target.read_text())
    shipped_file = Path(__file__).parents[2] / "batchgen" / "catalog" / "offsets.json"
    assert made == json.loads(shipped_file.read_text())
