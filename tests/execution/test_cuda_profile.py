"""`batchgen profile --device cuda` on a real GPU: written, read, and used by the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from batchgen.cli import main
from batchgen.cost.profile import load_profile
from batchgen.exec.init import init_model
from batchgen.exec.profile_grid import CUDA_QUICK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize(("arch", "size"), [("qwen3", "small"), ("qwen3-moe", "small")])
def test_a_gpu_is_profiled_and_simulated(
    arch: str, size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = init_model(tmp_path / "m", arch, size)
    path = tmp_path / "p.json"
    command = ["profile", "--device", "cuda", "--quick", "--model", str(model), "-o", str(path)]
    assert main(command) == 0
    profile, document = load_profile(path), json.loads(path.read_text())
    machine = document["machine"]
    assert machine["name"] == torch.cuda.get_device_name()
    assert machine["dtype"] == "bfloat16"
    assert machine["multiprocessors"] > 0
    assert {point.dtype for point in profile.gemm} == {"bf16"}
    assert {point.m for point in profile.gemm} == set(CUDA_QUICK.tokens)
    assert len(profile.experts) == (len(CUDA_QUICK.tokens) if arch == "qwen3-moe" else 0)
    # No product beats ten times the dense peak of today's GPUs, and no copy ten times its link.
    assert all(2 * p.m * p.n * p.k / p.seconds < 2e16 for p in profile.gemm)
    assert 1e8 < profile.copies.host_bytes_per_s < 1e12
    assert profile.spread is not None
    assert profile.spread.least <= 1 <= profile.spread.most
    trace = tmp_path / "t.jsonl"
    rows = [{"prompt_tokens": 40 + 9 * n, "output_tokens": 30} for n in range(20)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    command = ["sim", "--trace", str(trace), "--model", str(model), "--gpus", "1"]
    assert main([*command, "--layout", "tp1", "--profile", str(path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["residual"]["least"] == profile.spread.least
    assert run["bct_s"] > 0
