"""Jobs on a GPU, where there is none: plans by the GPU's memory, and refusals in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from batchgen.cli import main
from batchgen.cli.prediction import _device_as_profiled
from batchgen.errors import UserError
from batchgen.exec import sizing
from batchgen.exec.arithmetic import _has_aligned_rows
from batchgen.exec.config import load_config
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.machine_facts import driver_version, machine_facts
from batchgen.exec.profile_grid import grid_of
from batchgen.job.rows import JobRow
from batchgen.job.sampling import Sampling
from batchgen.planning import PlanOptions
from batchgen.policy.presets import find_preset

GB = 1 << 30
HERE = not torch.cuda.is_available()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("devices") / "m", "qwen3", "tiny")


def long_row() -> JobRow:
    return JobRow(
        index=0,
        line=1,
        custom_id="x",
        kind="completion",
        model=None,
        prompt_ids=[1] * 90,
        max_output=4000,
        sampling=Sampling(),
        ignore_eos=True,
    )


def test_a_gpu_plans_with_its_own_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little on the GPU and much on the host, and the other way round."""
    free = {"gpu": 0, "host": 0}
    monkeypatch.setattr(sizing, "free_device_bytes", lambda _: free["gpu"])
    monkeypatch.setattr(sizing, "free_memory_bytes", lambda: free["host"])
    config = load_config(model)
    page_bytes = config.kv_page_elements(64) * 2
    rows = [len(long_row().prompt_ids) + long_row().max_output] * 600
    job = ExecJob(
        model=model, input=model, output=model, device="cuda", dtype="bfloat16", policy="batchgen"
    )

    def plan(gpu: int, host: int, **changes: int) -> tuple[int, int]:
        free.update(gpu=gpu, host=host)
        options, preset = PlanOptions(), find_preset("batchgen")
        made = sizing.make_plan(
            replace(job, **changes), options, preset, config, rows, page_tokens=64
        )
        assert made.boundary == preset.boundary
        engine = made.engines[0]
        return engine.hbm_pages, engine.host_pages

    limits = sizing.limits_of("cuda")
    hbm, host = plan(1000 * page_bytes, 64 * GB)
    assert hbm == int(1000 * limits.memory)
    assert host > hbm
    hbm, host = plan(64 * GB, 1000 * page_bytes)
    assert host == int(1000 * limits.host_memory)
    assert hbm > host
    with pytest.raises(UserError, match="free on the GPU"):
        plan(1000 * page_bytes, 64 * GB, hbm_pages=1001)
    with pytest.raises(UserError, match="of the host"):
        plan(64 * GB, 1000 * page_bytes, host_pages=1001)
    free.update(gpu=1000)
    with pytest.raises(UserError, match="memory are free on the GPU"):
        sizing.check_weights_fit(job, model)


def test_grids_have_the_sizes_of_their_passes() -> None:
    for device, most in (("cpu", (1024, 128, 2048)), ("cuda", (16384, 512, 32768))):
        grid = grid_of(device)
        assert (max(grid.tokens), max(grid.rows), max(grid.contexts)) == most
        quick = grid_of(device, quick=True)
        assert len(quick.tokens) < len(grid.tokens)
        for one in (grid, quick):
            assert min(one.rows) * min(one.contexts) <= one.max_kv_tokens


def test_experts_whose_rows_do_not_begin_at_16_bytes_are_known() -> None:
    def fits(width: int, device: str = "meta") -> bool:
        make = {"dtype": torch.bfloat16, "device": device}
        return _has_aligned_rows(torch.empty(5, width, **make), torch.empty(3, 9, width, **make))

    assert [fits(width) for width in (64, 72, 36, 65)] == [True, True, False, False]
    assert fits(36, "cpu")


@pytest.mark.skipif(not HERE, reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "this torch finds no cuda device"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_what_is_not_here_is_not_profiled(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "-o", str(tmp_path / "p.json"), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HERE, reason="there is a GPU")
def test_a_profile_of_a_gpu_is_validated_on_one() -> None:
    assert _device_as_profiled({"machine": {"device": "cpu"}}, Path("p.json")) == "cpu"
    assert _device_as_profiled({}, Path("p.json")) == "cpu"
    with pytest.raises(UserError, match=r"p\.json was measured on a GPU"):
        _device_as_profiled({"machine": {"device": "cuda"}}, Path("p.json"))


def test_latent_attention_is_refused_before_it_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = init_model(tmp_path / "m", "deepseek-v3", "tiny")
    (folder / "model.safetensors").unlink()
    assert main(["profile", "-o", str(tmp_path / "p.json"), "--model", str(folder)]) == 2
    assert "latent attention is not measured" in capsys.readouterr().err


def test_the_driver_says_its_version(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver_version(file) is None
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    assert driver_version(file) == "550.54.15"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95  Release\n")
    assert driver_version(file) == "580.95"
    file.write_text("nothing")
    assert driver_version(file) is None
    assert machine_facts("cpu", "float32").keys() >= {"device", "name", "torch", "threads"}
