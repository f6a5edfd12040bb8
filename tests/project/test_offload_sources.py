"""Systems that stream weights beside worked examples of their sources, computed here by hand from
the sources' own formulas and tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offload_script import load_script

from batchgen.catalog.systems import find_system
from batchgen.cost.api import PassLoad
from batchgen.cost.block import BlockSchedule, BlockWork
from batchgen.cost.build import build_cost
from batchgen.cost.capacity import capacity
from batchgen.cost.efficiency import efficiency_of
from batchgen.cost.residency import Residency
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.model import load_model
from batchgen.planning import plan_options

GIB, T = 2**30, 10**12
ONE = parse_layout("dp1", 1)
T4, MIXTRAL = load_gpu("t4"), load_model("mixtral-8x7b")
PROMPT, OUTPUT = 512, 32
# FlexGen's policies (its cost model, its benchmarks): rows of a GPU batch, GPU batches, the part of
# the weights on the GPU; and its model, experimental/cost_model.py.
OPT_30B = {"layers": 48, "hidden": 7168, "rows": 48, "batches": 3, "on_gpu": 0.2}


def flexgen_terms(layers: int, hidden: int, rows: int, batches: int, on_gpu: float) -> Any:
    """Seconds of one layer of a block by FlexGen's cost model, with its constants of a T4: prompts
    and decodes, each (host to device, device to host, computation)."""
    block = rows * batches
    weights = 24 * hidden**2  # bytes in halves: four projections, two products of four times hidden
    states = 2 * hidden * block
    prompts = (
        (weights * (1 - on_gpu) + PROMPT * states) / (12.89 * GIB),
        4 * (PROMPT + 1) * hidden * block / (0.97 * GIB) + PROMPT * states / (4.82 * GIB),
        block * PROMPT * weights / (21.24 * T) + 4 * block * PROMPT**2 * hidden / (9.97 * T),
    )
    cpu = 0.0123 * T * (1 - 0.0328 * np.log2(64 / rows))
    decodes = (
        (weights * (1 - on_gpu) + states) / (12.89 * GIB),
        states / (4.82 * GIB),
        block * weights / (4.3 * T) + 4 * block * (PROMPT + OUTPUT / 2) * hidden / cpu,
    )
    return prompts, decodes


def test_flexgen_latency_model() -> None:
    """OPT-30B: max of the three for prompts, the first + max of the others for decodes: 7.1 tokens
    a second by FlexGen's model, 7.32 measured. The block schedule makes the same of these terms."""
    layers, batches = OPT_30B["layers"], OPT_30B["batches"]
    prompts, decodes = flexgen_terms(**OPT_30B)  # type: ignore[arg-type]
    by_hand = layers * (max(prompts) + (OUTPUT - 1) * (decodes[0] + max(decodes[1:])))
    speed = OPT_30B["rows"] * batches * OUTPUT / by_hand
    assert speed == pytest.approx(7.13, abs=0.01)
    assert speed == pytest.approx(7.32, rel=0.03)

    def whole(terms: Any, *, decoding: bool) -> float:
        none = np.zeros(1, dtype=np.int64)
        up, down, computed = (np.array([round(layers * term * 1e12)]) for term in terms)
        work = BlockWork(
            weights=up,
            up=none,
            down=down,
            disk_weights=none,
            disk_read=none,
            disk_write=none,
            gpu=computed,
            attention=none,
            cpu=none,
            decoding=np.array([decoding]),
            batches=np.array([batches]),
        )
        return float(BlockSchedule(kind="zig-zag", num_layers=48).pass_ps(work)[0]) / 1e12

    total = whole(prompts, decoding=False) + (OUTPUT - 1) * whole(decodes, decoding=True)
    assert total == pytest.approx(by_hand)


def test_flexgen_blocks(tmp_path: Path) -> None:
    """144 rows of OPT-30B on a T4 with 208 GB: three GPU batches of 48 have room, four have not,
    neither by FlexGen's rule (0.8 of 204 GiB) nor here; and one GPU batch of 144 has no room on the
    GPU."""
    weights, kv_row = 24 * 7168**2 * 48, 4 * (PROMPT + OUTPUT) * 7168 * 48
    rows = (0.8 * 204 * GIB - 0.8 * weights) / (kv_row + 2 * 7168)
    assert 3 * 48 <= rows < 4 * 48
    script = load_script()
    model = load_model(script.write_model("OPT-30B", tmp_path))
    places = Residency(weights="layers", kv="host", attention="cpu", gpu_batches=3)
    block = {"token_budget": 144 * PROMPT, "max_num_seqs": 144}
    sizes = capacity(model, T4, ONE, residency=places, **block)
    assert model.kv_bytes_per_token * (PROMPT + OUTPUT) == kv_row
    assert 3 * 48 <= sizes.hbm_tokens // (PROMPT + OUTPUT) < 4 * 48
    with pytest.raises(UserError, match="does not fit"):
        capacity(model, T4, ONE, residency=replace(places, gpu_batches=1), **block)


def test_flexgen_reads_weights_once_for_a_block(tmp_path: Path) -> None:
    """The gain over a row of GPU batches one after the other, which load the weights each."""
    script = load_script()
    point = next(p for p in script.POINTS if (p.system, p.rows) == ("FlexGen", 144))
    block = script.simulated(point, tmp_path)
    apart = script.simulated(
        replace(point, rows=48), tmp_path, **{"plan.gpu_batches": "1", "plan.token_budget": "24576"}
    )
    weights_s = 24 * 7168**2 * 48 / (0.879 * 15.75e9)
    saved = 2 * (OUTPUT - 1) * weights_s  # decodes of two batches more, per 144 rows
    assert 144 * OUTPUT / apart - 144 * OUTPUT / block == pytest.approx(saved, rel=0.15)


V100 = replace(
    T4,
    name="v100",
    peak_flops={"bf16": 125e12, "fp32": 15.7e12},
    hbm_bytes=32 * 10**9,
    hbm_bytes_per_s=9e11,
    host_bytes=1500 * 10**9,
)
"""ZeRO-Inference's V100-32GB in a DGX-2: link and disks as the T4's."""


def zero_inference(model: Any, rows: int, **options: Any) -> tuple[float, int]:
    """Tokens a second of decodes with KV in HBM, by `zero-inference`, and how many rows have
    room (prompts of 4 tokens, 10 of output)."""
    preset, _ = find_system("zero-inference")
    disk = options.pop("disk", V100.disk_read_bytes_per_s)
    places = plan_options({f"plan.{name}": str(value) for name, value in options.items()})
    places = replace(places, weights=options.get("weights", "layers"))
    gpu = replace(V100, disk_read_bytes_per_s=disk)
    sizes = capacity(
        model, gpu, ONE, residency=places.residency, token_budget=2048, max_num_seqs=1024
    )
    cost = build_cost(
        model,
        gpu,
        ONE,
        gpus_per_node=1,
        residency=places.residency,
        streamed_bytes=sizes.streamed_bytes,
        disk_bytes=sizes.disk_bytes,
        efficiency=efficiency_of({"cost.host_link": "0.879"}, preset.costs),
    )
    return rows / (cost.pass_one_ps(rows, rows * 10, samples=rows) / 1e12), sizes.hbm_tokens // 14


def test_zero_inference_passes_take_what_the_weights_take(tmp_path: Path) -> None:
    """OPT-30B on one V100, 43 tokens a second from the host and 30 from NVMe. Neither its batch nor
    its disks were published, so that the rows (184) and the rate of the disks are those that 43 and
    30 need: what is seen here is that they have room, and that every pass takes the whole of the
    weights over the link, or from the disks, and nothing else."""
    script = load_script()
    model = load_model(script.write_model("OPT-30B", tmp_path))
    link = 0.879 * 15.75e9
    streamed = 24 * 7168**2 * 48
    rows = round(43 * streamed / link)
    assert rows == 184
    speed, room = zero_inference(model, rows)
    assert rows < room
    assert speed == pytest.approx(43, rel=0.03)
    speed, _ = zero_inference(model, rows, weights="disk", disk=link * 30 / 43)
    assert speed == pytest.approx(30, rel=0.03)


def test_zero_inference_keeps_nothing_on_the_gpu(tmp_path: Path) -> None:
    """Its table 2: all weights on the host beat 10 or 12 of the 30 billion parameters on the GPU,
    because what those leave holds fewer rows than they save copies (published: more than 1.3
    times; here memory alone bounds the rows, so more)."""
    script = load_script()
    model = load_model(script.write_model("OPT-30B", tmp_path))
    speeds = {}
    for share in (0.0, 1 / 3, 0.4):
        _, room = zero_inference(model, 1, resident_share=share)
        speeds[share], _ = zero_inference(model, room, resident_share=share)
    assert speeds[0.0] > 1.3 * max(speeds[1 / 3], speeds[0.4])


def moe_lightning(rows: int, context: int, batches: int, **constants: str) -> Any:
    """The cost model of `moe-lightning` on a T4 and one decode pass of it: (time, breakdown), s."""
    preset, _ = find_system("moe-lightning")
    places = plan_options({"plan.gpu_batches": str(batches)}, preset.plan).residency
    sizes = capacity(MIXTRAL, T4, ONE, residency=places, token_budget=8192 * batches)
    cost = build_cost(
        MIXTRAL,
        T4,
        ONE,
        gpus_per_node=1,
        residency=places,
        streamed_bytes=sizes.streamed_bytes,
        efficiency=efficiency_of({f"cost.{k}": v for k, v in constants.items()}, preset.costs),
    )
    load = PassLoad.zeros(1, 1)
    load.decodes[:], load.context[:], load.samples[:] = rows, rows * context, rows
    parts = {name: float(time[0]) / 1e12 for name, time in cost.breakdown(load).items()}
    return float(cost.pass_ps(load)[0]) / 1e12, parts


EXPERTS = 2 * 3 * 4096 * 14336 * 8
"""Bytes of a layer's experts, `wi` of MoE-Lightning's performance model."""


def test_moe_lightning_turns_at_the_balance_of_cpu_and_link() -> None:
    """HRM, decodes: T = max(weights / link, attention on the CPU, GPU). Attention reads 4 h_kv
    bytes of a token, so that rows x context = (experts / link) x CPU bandwidth / (4 h_kv) is where
    more rows begin to cost more."""
    context, cpu = 205, 4e9  # a slow one, so that the GPU never decides
    link = 15.75e9 * 0.8
    rows = EXPERTS / link * cpu / (4 * context * 1024)
    told = {"cpu_attention_bytes_per_s": str(cpu)}
    half, balance, twice, four = (
        moe_lightning(round(part * rows), context, 8, **told)[0] for part in (0.5, 0.95, 2.0, 4.0)
    )
    weights = 32 * EXPERTS / link
    assert half == pytest.approx(weights, rel=0.05)
    assert balance == pytest.approx(weights, rel=0.1)
    assert twice == pytest.approx(2 * weights, rel=0.05)
    assert four == pytest.approx(4 * weights, rel=0.05)


def test_moe_lightning_turns_at_the_balance_of_hbm_and_link() -> None:
    """Every micro-batch reads the layer's experts from HBM (`MLP_bytes` of its model times their
    number), so beyond HBM bandwidth / link bandwidth micro-batches the GPU is slower than the
    link; the value of the system is that of its T4, 300 over 16."""
    _, constants = find_system("moe-lightning")
    assert constants["plan.gpu_batches"].value == 300 // 16
    context, per_batch = 100, 30
    link = 15.75e9 * 0.8
    _, parts = moe_lightning(per_batch, context, 1)
    once = parts["experts"]
    assert once == pytest.approx(32 * EXPERTS / (3e11 * 0.78), rel=0.02)
    balance = 32 * EXPERTS / link / once
    assert 15 < balance < 20
    few, many = (
        moe_lightning(round(balance * part) * per_batch, context, round(balance * part))[0]
        for part in (0.6, 2.0)
    )
    assert few == pytest.approx(32 * EXPERTS / link, rel=0.05)
    assert many == pytest.approx(2 * 32 * EXPERTS / link, rel=0.25)
    assert many > 2 * once * balance


def test_moe_lightning_memory() -> None:
    """Its model keeps all but the experts on the GPU, and the experts of two layers."""
    preset, _ = find_system("moe-lightning")
    places = plan_options({"plan.gpu_batches": "18"}, preset.plan).residency
    sizes = capacity(MIXTRAL, T4, ONE, residency=places, token_budget=8192 * 18)
    others = 32 * (4 * 4096**2 + 4 * 4096**2 // 4) * 2 / 2
    assert sizes.streamed_bytes == 32 * EXPERTS
    rest = sizes.weight_bytes_per_gpu - 2 * EXPERTS
    assert others < rest < others + 2 * 4 * 32000 * 4096 + 10**9


def test_vllm_cpu_offload(tmp_path: Path) -> None:
    """--cpu-offload-gb G: these bytes cross the link in every pass, whatever it holds, and what
    decodes attend to comes after. 40 of the 93 GB of Mixtral-8x7B, the rest in HBM."""
    preset, _ = find_system("vllm-cpu-offload")
    gpu, offload = load_gpu("h100"), 40 * 10**9
    layers = MIXTRAL.weight_bytes - 2 * 32000 * 4096 * 2 - 4096 * 2
    share = {"plan.resident_share": str(1 - offload / layers)}
    places = plan_options(share, preset.plan).residency
    sizes = capacity(MIXTRAL, gpu, ONE, residency=places)
    assert sizes.streamed_bytes == pytest.approx(offload, abs=2)
    efficiency = efficiency_of({}, preset.costs)
    cost = build_cost(
        MIXTRAL,
        gpu,
        ONE,
        gpus_per_node=1,
        residency=places,
        streamed_bytes=sizes.streamed_bytes,
        efficiency=efficiency,
    )
    link = 64e9 * 0.8 * 0.65
    per_token = 2 * 2 * 8 * 128 * 32
    for rows, context in ((1, 1), (64, 64 * 1000)):
        load = PassLoad.zeros(1, 1)
        load.decodes[:], load.context[:], load.samples[:] = rows, context, rows
        assert cost.streams_ps(load)[0][0] / 1e12 == pytest.approx(offload / link)
        least = offload / link + context * per_token / gpu.hbm_bytes_per_s
        assert least < cost.pass_ps(load)[0] / 1e12 < 1.02 * least
