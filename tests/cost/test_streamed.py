"""Engines whose weights or KV stay on the host: what is where, what the link makes of a pass."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batchgen.cost.api import PS_PER_S, PassLoad
from batchgen.cost.build import build_cost
from batchgen.cost.capacity import capacity
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.residency import WEIGHTS, Residency, placed
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout, weight_bytes_per_gpu
from batchgen.model import load_model
from batchgen.planning import plan_options
from batchgen.sim.setup import set_up
from batchgen.simjob import SimJob
from batchgen.trace.schema import load as load_trace

MIXTRAL, A5000 = load_model("mixtral-8x7b"), load_gpu("a5000")
ONE = parse_layout("dp1", 1)
ON_HOST = Residency(weights="experts", kv="host", attention="cpu")
PLACES = [
    Residency(weights="layers"),
    Residency(weights="experts"),
    Residency(weights="spill", kv="host"),
    ON_HOST,
    Residency(weights="disk", disk_share=0.25),
    Residency(weights="disk", kv="disk", attention="cpu"),
    Residency(weights="layers", kv="disk"),
]


def random_load(rng: random.Random, ranks: int, passes: int) -> PassLoad:
    load = PassLoad.zeros(ranks, passes)
    for at in np.ndindex(ranks, passes):
        rows, tokens = rng.choice((0, 1, 40)), rng.choice((0, 0, 500))
        start = rng.choice((0, 1000)) if tokens else 0
        load.decodes[at], load.context[at] = rows, rows * rng.randint(1, 9000)
        load.chunk_tokens[at], load.chunk_reads[at] = tokens, start
        load.chunk_pairs[at] = (start + tokens) ** 2 - start**2
        load.samples[at] = rows + bool(tokens)
    return load


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_weight_is_on_the_gpu_or_comes_from_the_host(weights: str) -> None:
    held = weight_bytes_per_gpu(MIXTRAL, ONE)
    resident, streamed = placed(MIXTRAL, ONE, Residency(weights=weights), held)
    ring = resident + streamed - sum(held.values())
    assert ring == 0 if weights in ("hbm", "spill") else ring > 0
    layers = 2 * streamed / MIXTRAL.num_layers
    two = {"layers": layers, "moe-layers": layers, "disk": layers}
    two["experts"] = 4 * MIXTRAL.expert_parameters
    assert ring == pytest.approx(two.get(weights, 0), abs=1)


def test_a_model_that_does_not_fit_runs_from_the_host() -> None:
    with pytest.raises(UserError, match="does not fit"):
        capacity(MIXTRAL, A5000, ONE)
    for places in PLACES:
        sizes = capacity(MIXTRAL, A5000, ONE, residency=places)
        usable = 0.9 * A5000.hbm_bytes
        used = sizes.weight_bytes_per_gpu + sizes.workspace_bytes + sizes.kv_pool_bytes
        assert used <= usable
        assert sizes.streamed_bytes > 60e9
        host = sizes.hbm_pages * sizes.page_tokens * MIXTRAL.kv_bytes_per_token
        assert (places.kv != "hbm") == (host > 100e9)
        assert sizes.host_pages == 0 or places.kv == "hbm"


def test_spilled_experts_are_no_more_than_what_is_short() -> None:
    model, gpu, layout = load_model("deepseek-r1"), load_gpu("h20"), parse_layout("dpa8+ep8", 8)
    places = Residency(weights="spill", kv="host")
    sizes = capacity(model, gpu, layout, residency=places, memory_fraction=0.95)
    more = capacity(model, gpu, layout, residency=places, memory_fraction=0.99)
    assert 0 < more.streamed_bytes < sizes.streamed_bytes
    assert sizes.streamed_bytes - more.streamed_bytes == pytest.approx(
        0.04 * gpu.hbm_bytes, rel=1e-6
    )
    # All of it in HBM, where it fits: nothing is streamed.
    roomy = capacity(model, load_gpu("h200"), layout, residency=Residency(weights="spill"))
    assert roomy.streamed_bytes == 0


def test_rows_that_take_device_memory_bound_the_batch() -> None:
    sizes = capacity(MIXTRAL, A5000, ONE, residency=replace(ON_HOST, row_bytes=100_000_000))
    assert sizes.seats == sizes.kv_pool_bytes // 100_000_000


def test_attention_on_the_cpu_reads_kv_of_the_host() -> None:
    with pytest.raises(UserError, match=r"plan\.attention=cpu"):
        plan_options({"plan.attention": "cpu"}).residency  # noqa: B018
    with pytest.raises(UserError, match=r"--set plan\.kv=tape: no such choice; choose one of hbm"):
        plan_options({"plan.kv": "tape"})
    with pytest.raises(UserError, match=r"plan\.disk_share.*plan\.weights=disk"):
        plan_options({"plan.disk_share": "0.5"}).residency  # noqa: B018


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_a_pass_takes_the_longest_of_gpu_link_and_cpu(places: Residency, theta: float) -> None:
    rng = random.Random(5)
    layout = parse_layout("dpa2+ep2", 2)
    gpu = replace(A5000, node_host_bytes_per_s=4e10)
    inner = build_cost(MIXTRAL, gpu, layout, gpus_per_node=2)
    cost = build_cost(
        MIXTRAL,
        gpu,
        layout,
        gpus_per_node=2,
        residency=places,
        streamed_bytes=10**10,
        disk_bytes=3 * 10**9,
        efficiency=Efficiency(stream_theta=theta),
    )
    load = random_load(rng, 2, 200)
    times, (ups, downs) = cost.pass_ps(load), cost.streams_ps(load)
    link, cpu = 4e10 / 2, 140e9 / 2
    read, write = gpu.disk_read_bytes_per_s / 2, gpu.disk_write_bytes_per_s / 2
    kv = MIXTRAL.kv_bytes_per_token
    for j in range(load.num_passes):
        one = load.window(j, j + 1)
        busy = bool((one.decodes + one.chunk_tokens).any())
        on_gpu = one
        up, down, disk, compute = 1e10 / link, 0.0, 3e9 / read, 0.0
        reads, writes = one.context + one.chunk_reads, one.decodes + one.chunk_tokens
        if places.kv != "hbm":
            up += float((one.chunk_reads if places.attention == "cpu" else reads).max()) * kv / link
            down = float(writes.max()) * kv / link
        if places.kv == "disk":
            disk += float(reads.max()) * kv / read + float(writes.max()) * kv / write
        if places.attention == "cpu":
            on_gpu = replace(one, context=np.zeros_like(one.context))
            compute = float(one.context.max()) * kv / cpu
        rest = max(int(inner.pass_ps(on_gpu)[0]) / PS_PER_S, down, disk, compute)
        longest = max(up, rest) + theta * min(up, rest)  # fetched beside the rest, or after it
        assert times[j] / PS_PER_S == pytest.approx(longest if busy else 0.0, rel=1e-9)
        assert ups[j] / PS_PER_S == pytest.approx(up if busy else 0.0, rel=1e-9)
        assert downs[j] / PS_PER_S == pytest.approx(down, rel=1e-9)
        assert max(ups[j], downs[j]) <= times[j]
        # Scalars of one pass are the same integers.
        columns = (one.decodes, one.context, one.chunk_tokens, one.chunk_pairs, one.chunk_reads)
        loads = [
            (*(int(column[rank, 0]) for column in columns), int(one.samples[rank, 0]), 0)
            for rank in range(2)
        ]
        assert cost.time_ps(loads) == times[j]
    assert set(inner.breakdown(load)) < set(cost.breakdown(load))


@pytest.mark.parametrize("depth", ["1", "2"])
@pytest.mark.parametrize("policy", ["flexgen", "moe-lightning", "batchgen", "vllm"])
def test_any_split_of_a_step_gives_the_same_times(tmp_path: Path, policy: str, depth: str) -> None:
    rng = random.Random(7)
    path = tmp_path / "x.jsonl"
    rows = [
        {"prompt_tokens": rng.randint(1, 900), "output_tokens": rng.randint(1, 300)}
        for _ in range(60)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    places = {"plan.weights": "experts", "plan.kv": "host", "plan.attention": "cpu"}
    more = {"plan.max_num_seqs": "12", "plan.depth": depth} | places
    job = SimJob(
        trace=str(path),
        model="mixtral-8x7b",
        cluster="a5000-pc",
        gpus=1,
        layout="dp1",
        policy=policy,
        overrides=tuple(more.items()),
    )
    ends = []
    for reference in (False, True):
        ready = set_up(job, load_trace(str(path)), reference=reference)
        ready.simulation.run()
        found = ready.simulation.recorder.rows(ready.simulation.table, ready.arrival_ps)
        ends.append(found["end_ps"].tolist())
        assert min(ends[-1]) > 0
    assert ends[0] == ends[1]
