"""Host links shared by the GPUs of a node, disks behind them, and what fits where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from batchgen.cost.build import build_cost
from batchgen.cost.capacity import capacity
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.residency import Residency
from batchgen.cost.tiers import tier_rates
from batchgen.errors import UserError
from batchgen.hardware import gpu_names, load_gpu
from batchgen.layout import parse_layout
from batchgen.model import load_model
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

MIXTRAL, T4, H20 = load_model("mixtral-8x7b"), load_gpu("t4"), load_gpu("h20")
ONE = parse_layout("dp1", 1)


@pytest.mark.parametrize("name", gpu_names())
def test_gpus_of_a_node_share_what_it_gives(name: str) -> None:
    gpu = load_gpu(name)
    alone = tier_rates(gpu, Efficiency(), 1)
    assert alone.host == min(0.8 * gpu.host_bytes_per_s, gpu.node_host_bytes_per_s)
    for gpus in range(1, gpu.gpus_per_node + 1):
        rates = tier_rates(gpu, Efficiency(), gpus)
        assert rates.host <= alone.host
        assert rates.host * gpus <= gpu.node_host_bytes_per_s * (1 + 1e-12)
        assert rates.disk_read * gpus == pytest.approx(gpu.disk_read_bytes_per_s)
        assert rates.disk_write * gpus == pytest.approx(gpu.disk_write_bytes_per_s)


def test_rates_of_a_cluster_stand_before_those_of_the_catalog() -> None:
    own = Efficiency(node_host_bytes_per_s=1e11, disk_read_bytes_per_s=1e10, host_copies=0.5)
    rates = tier_rates(H20, own, 4)
    assert (rates.host, rates.disk_read) == (0.5 * 1e11 / 4, 1e10 / 4)
    assert rates.disk_write == H20.disk_write_bytes_per_s / 4


def test_eight_gpus_copy_slower_than_one() -> None:
    """As BatchGen reports of eight H20: 32 GB/s each."""
    kv = MIXTRAL.kv_bytes_per_token
    layout = parse_layout("dp8", 8)
    one, eight = (build_cost(MIXTRAL, H20, layout, gpus_per_node=n) for n in (1, 8))
    assert eight.copy_ps(10**6, "host") / 1e12 == pytest.approx(10**6 * kv / 32e9, rel=1e-3)
    assert eight.copy_ps(10**6, "host") / one.copy_ps(10**6, "host") == pytest.approx(1.6, rel=1e-3)


def test_the_host_stages_what_the_disks_hold() -> None:
    on_host = capacity(MIXTRAL, T4, ONE, residency=Residency(weights="layers", kv="host"))
    half = Residency(weights="disk", disk_share=0.5, kv="host")
    on_disk = capacity(MIXTRAL, T4, ONE, residency=half)
    assert on_disk.streamed_bytes == on_host.streamed_bytes == 2 * on_disk.disk_bytes
    more = (on_disk.hbm_pages - on_host.hbm_pages) * 64 * MIXTRAL.kv_bytes_per_token
    staged = 2 * on_disk.disk_bytes / MIXTRAL.num_layers
    assert more == pytest.approx(0.9 * (on_disk.disk_bytes - staged), rel=0.01)
    kv = capacity(MIXTRAL, T4, ONE, residency=Residency(weights="layers", kv="disk"))
    held = kv.hbm_pages * 64 * MIXTRAL.kv_bytes_per_token
    assert held == pytest.approx(0.9 * T4.disk_bytes, rel=0.01)
    assert kv.host_pages == 0


def test_what_fits_nowhere_says_where_it_would() -> None:
    small = replace(T4, host_bytes=64 * 10**9)
    with pytest.raises(UserError, match=r"64 GB of a host do not hold.*--set plan\.weights=disk"):
        capacity(MIXTRAL, small, ONE, residency=Residency(weights="layers"))
    assert capacity(MIXTRAL, small, ONE, residency=Residency(weights="disk")).disk_bytes > 80e9
    with pytest.raises(UserError, match=r"larger plan\.disk_share"):
        capacity(MIXTRAL, small, ONE, residency=Residency(weights="disk", disk_share=0.1))
    tiny = replace(small, disk_bytes=10**10)
    with pytest.raises(UserError, match=r"10 GB of disks do not hold"):
        capacity(MIXTRAL, tiny, ONE, residency=Residency(weights="disk"))
    tiny = replace(T4, disk_bytes=10**7)
    with pytest.raises(UserError, match=r"plan\.kv=disk: 0 GB of the disks of a node hold no KV"):
        capacity(MIXTRAL, tiny, ONE, residency=Residency(weights="layers", kv="disk"))


def job_of(folder: Path, model: str, **plan: str) -> SimJob:
    trace = folder / "trace.jsonl"
    row = {"prompt_tokens": 512, "output_tokens": 32}
    trace.write_text("".join(json.dumps(row) + "\n" for _ in range(16)))
    places = tuple((f"plan.{name}", value) for name, value in plan.items())
    return SimJob(
        trace=str(trace), model=model, gpu="t4", gpus=1, layout="dp1", policy="static",
        overrides=places,
    )  # fmt: skip


def test_a_model_beyond_hbm_and_host_is_sent_to_the_disk(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"on the disk: --layout dp1 --set plan\.weights=disk"):
        simulate(job_of(tmp_path, "mixtral-8x22b"))
    with pytest.raises(UserError, match=r"on the host: --layout dp1 --set plan\.weights=spill"):
        simulate(job_of(tmp_path, "mixtral-8x7b"))


def test_the_slower_of_disk_and_link_decides(tmp_path: Path) -> None:
    """Passes of few rows take what their weights take on the slowest way to the GPU."""
    ends = {}
    for share in ("0", "0.1", "0.3", "1"):
        job = job_of(tmp_path, "mixtral-8x7b", weights="disk", disk_share=share)
        ends[share] = int(simulate(job).rows["end_ps"].max()) / 1e12
    weights = capacity(MIXTRAL, T4, ONE, residency=Residency(weights="disk")).streamed_bytes
    link, disk = 0.8 * T4.host_bytes_per_s, T4.disk_read_bytes_per_s
    for share, end in ends.items():
        slowest = max(weights / link, float(share) * weights / disk)
        assert end == pytest.approx(32 * slowest, rel=0.03)
    assert ends["0"] == ends["0.1"] < ends["0.3"] < ends["1"]


def test_gpus_that_a_job_has_not_take_no_part_of_a_link(tmp_path: Path) -> None:
    job = replace(job_of(tmp_path, "llama-3.1-70b", weights="layers"), gpu="h100")
    ends = {
        node: int(simulate(replace(job, gpus_per_node=node)).rows["end_ps"].max())
        for node in (None, 1, 8)
    }
    assert len(set(ends.values())) == 1
