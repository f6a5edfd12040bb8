"""The roofline: exact integer times, agreement of its paths, monotonicity, published sizes."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.catalog.systems import find_cluster
from batchgen.cost.api import PS_PER_S, PassLoad
from batchgen.cost.build import build_cost
from batchgen.cost.efficiency import Efficiency, efficiency_of
from batchgen.cost.experts import heaviest_rank, popularity, touched_experts
from batchgen.cost.roofline import RooflineCost
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.model import load_model

CASES = [
    ("llama-3.1-8b", "h100", "tp1", 1),
    ("llama-3.1-70b", "a100", "tp4", 4),
    ("mixtral-8x7b", "h20", "tp2", 2),
    ("qwen3-30b-a3b", "h200", "tp1", 1),
    ("gpt-oss-20b", "rtx-4090", "tp1", 1),
    ("deepseek-r1", "h20", "tp8+ep8", 8),
]
LOCKSTEP = ("deepseek-r1", "h20", "dpa16+ep16", 16)


@cache
def cost(model: str, gpu: str, spec: str, gpus: int, **options: float) -> RooflineCost:
    made = build_cost(load_model(model), load_gpu(gpu), parse_layout(spec, gpus), **options)  # type: ignore[arg-type]
    assert isinstance(made, RooflineCost)
    return made


@st.composite
def loads(draw: st.DrawFn, num_ranks: int, num_passes: int) -> PassLoad:
    load = PassLoad.zeros(num_ranks, num_passes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (num_ranks, num_passes)
    some = draw(st.sampled_from([0.0, 0.5, 1.0]))
    load.decodes[:] = rng.integers(0, 300, shape) * (rng.random(shape) < 0.8)
    load.context[:] = load.decodes * rng.integers(1, 20_000, shape)
    load.chunk_tokens[:] = rng.integers(0, 9000, shape) * (rng.random(shape) < some)
    start = rng.integers(0, 50_000, shape) * (load.chunk_tokens > 0)
    load.chunk_pairs[:] = (start + load.chunk_tokens) ** 2 - start**2
    load.chunk_reads[:] = start
    load.samples[:] = load.decodes + (load.chunk_tokens > 0)
    load.checkpoint[:] = load.chunk_tokens + load.decodes * rng.integers(0, 2)
    return load


@pytest.mark.parametrize("case", [*CASES, LOCKSTEP], ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_run_of_passes_splits_anywhere(
    case: tuple[str, str, str, int], data: st.DataObject
) -> None:
    engine = cost(*case)
    load = data.draw(loads(engine.num_ranks, 12))
    whole = engine.pass_ps(load)
    assert whole.dtype == np.int64
    cut = data.draw(st.integers(0, 12))
    parts = [engine.pass_ps(load.window(a, b)) for a, b in ((0, cut), (cut, 12)) if b > a]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("case", [*CASES, LOCKSTEP], ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_scalar_and_vector_paths_agree(
    case: tuple[str, str, str, int], data: st.DataObject
) -> None:
    engine = cost(*case)
    load = data.draw(loads(engine.num_ranks, 6))
    vector = engine.pass_ps(load)
    for p in range(6):
        one = [
            tuple(int(getattr(load, field.name)[rank, p]) for field in fields(load))
            for rank in range(engine.num_ranks)
        ]
        assert engine.time_ps(one) == vector[p]
        if engine.num_ranks == 1:
            assert engine.pass_one_ps(*one[0]) == vector[p]


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    decodes=st.integers(1, 3000),
    contexts=st.lists(st.integers(1, 10**8), min_size=1, max_size=8),
    checkpoint=st.booleans(),
)
def test_decode_affine_is_exact(
    case: tuple[str, str, str, int], decodes: int, contexts: list[int], checkpoint: bool
) -> None:
    engine = cost(*case)
    load = PassLoad.zeros(1, len(contexts))
    load.decodes[:] = load.samples[:] = decodes
    load.context[0] = contexts
    load.checkpoint[:] = decodes if checkpoint else 0
    start, slope = engine.decode_affine(decodes, checkpoint)
    assert isinstance(start, int)
    assert isinstance(slope, int)
    assert [start + slope * context for context in contexts] == engine.pass_ps(load).tolist()


def test_decode_affine_needs_one_rank() -> None:
    with pytest.raises(ValueError, match="one rank"):
        cost(*LOCKSTEP).decode_affine(4, False)


def test_lockstep_takes_the_slowest_rank() -> None:
    engine = cost(*LOCKSTEP)
    load = PassLoad.zeros(16, 1)
    load.decodes[:] = load.samples[:] = 8
    load.context[:] = 8 * 1000
    even = int(engine.pass_ps(load)[0])
    load.context[3] = 8 * 9000
    skewed = int(engine.pass_ps(load)[0])
    load.context[:] = 8 * 9000
    assert even < skewed == int(engine.pass_ps(load)[0])
    load.decodes[5:] = load.samples[5:] = load.context[5:] = 0  # idle ranks wait
    assert even < int(engine.pass_ps(load)[0]) <= skewed


def test_no_work_costs_nothing() -> None:
    for case in (*CASES, LOCKSTEP):
        engine = cost(*case)
        assert engine.pass_ps(PassLoad.zeros(engine.num_ranks, 3)).tolist() == [0, 0, 0]
        assert engine.pass_one_ps(0, 0) == 0
        assert engine.copy_ps(0, "host") == 0


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=30, deadline=None)
@given(
    decodes=st.integers(0, 500),
    mean=st.integers(1, 30_000),
    chunk=st.integers(1, 20_000),
    more=st.integers(1, 5000),
)
def test_more_work_takes_longer(
    case: tuple[str, str, str, int], decodes: int, mean: int, chunk: int, more: int
) -> None:
    engine = cost(*case)

    def time(decodes: int, mean: int, chunk: int) -> int:
        return engine.pass_one_ps(decodes, decodes * mean, chunk, chunk**2, 0, decodes + 1)

    base = time(decodes, mean, chunk)
    assert time(decodes, mean + more, chunk) >= base
    assert time(decodes, mean, chunk + more) >= base
    if decodes:
        assert time(decodes + more, mean, chunk) >= base
    assert engine.copy_ps(more + 1, "host") > engine.copy_ps(more, "host")
    assert engine.recompute_ps(more + 64) >= engine.recompute_ps(more)


def test_faster_machines_are_faster() -> None:
    def step(gpu: str) -> int:
        return cost("llama-3.1-8b", gpu, "tp1", 1).pass_one_ps(64, 64 * 2000, samples=64)

    assert step("b200") < step("h200") < step("h100") < step("a100") < step("rtx-4090")


def test_sub_batches_cost_launches_and_weight_reads() -> None:
    whole = cost("qwen3-30b-a3b", "h200", "tp1", 1)
    split = cost("qwen3-30b-a3b", "h200", "tp1", 1, plan_b_attn=64, plan_b_moe=64)
    args = (256, 256 * 1000)
    assert split.pass_one_ps(*args) > whole.pass_one_ps(*args)
    loose = cost("qwen3-30b-a3b", "h200", "tp1", 1, plan_b_attn=512, plan_b_moe=512)
    assert loose.pass_one_ps(*args) == whole.pass_one_ps(*args)


def test_expert_skew_slows_the_heaviest_rank() -> None:
    load = PassLoad.zeros(16, 1)
    load.chunk_tokens[:] = 4096
    load.chunk_pairs[:] = 4096**2
    times = [int(cost(*LOCKSTEP, expert_skew=skew).pass_ps(load)[0]) for skew in (0.0, 0.5, 1.01)]
    assert times[0] < times[1] < times[2]


def test_attention_split_for_few_long_rows() -> None:
    wide = cost(*LOCKSTEP)
    split = wide.with_layout(parse_layout("tp8+dpa2+ep16", 16))
    row = (1, 60_000)
    assert split.num_ranks == 2
    # 16 of 128 heads are a quarter of a tile, so that half of the time is left, not an eighth.
    assert split.terms.decode_slope(1) == pytest.approx(wide.terms.decode_slope(1) / 2)
    # Latent KV is replicated: heads are split, the bytes that each GPU reads are not.
    model, gpu = wide.terms.model, wide.terms.gpu
    read = model.num_layers * 1152 / gpu.hbm_bytes_per_s * PS_PER_S
    assert split.terms.decode_slope(1) >= read
    dense = cost("llama-3.1-70b", "a100", "tp4", 4)
    wider = dense.with_layout(parse_layout("tp8", 8))
    assert wider.pass_one_ps(*row) < dense.pass_one_ps(*row)


def test_checkpoint_hides_behind_compute_until_the_link_is_the_limit() -> None:
    engine = cost("llama-3.1-8b", "h100", "tp1", 1)
    plain = engine.pass_one_ps(64, 64_000)
    assert engine.pass_one_ps(64, 64_000, checkpoint=64) == plain
    flood = engine.pass_one_ps(64, 64_000, checkpoint=10**6)
    assert flood == pytest.approx(10**6 * 131_072 / (0.5 * 64e9) * PS_PER_S, rel=0.05)


def test_reports_count_useful_work() -> None:
    engine = cost("llama-3.1-8b", "h100", "tp1", 1)
    load = PassLoad.zeros(1, 2)
    load.decodes[0, 0] = load.samples[0, 0] = 10
    load.context[0, 0] = 10_000
    load.chunk_tokens[0, 1], load.chunk_pairs[0, 1], load.samples[0, 1] = 8192, 8192**2, 1
    flops, moved = engine.flops(load), engine.hbm_bytes(load)
    matmul = 2 * (8.03e9 - 128256 * 4096)
    assert flops[0] == pytest.approx(10 * matmul + 10_000 * 32 * 4 * 4096, rel=1e-3)
    assert moved[0] == pytest.approx(16.06e9 - 1.05e9 + 10_010 * 131_072, rel=1e-3)
    seconds = engine.pass_ps(load) / PS_PER_S
    assert (flops / seconds < 989e12).all()
    assert (moved / seconds < 3.35e12).all()


def test_published_sizes_of_deepseek_on_h20() -> None:
    """Feasibility study: 0.45 to 0.8 ms a prompt token and GPU; about 100 to 150 ms a step (its
    fixed part, 65 ms and more, holds bytes over links that few rows do not have here)."""
    engine = cost(*LOCKSTEP)
    model, gpu, spec, gpus = LOCKSTEP
    efficiency = efficiency_of({}, find_cluster("h20-ib").costs)  # the links of those machines
    layout = parse_layout(spec, gpus)
    there = build_cost(load_model(model), load_gpu(gpu), layout, efficiency=efficiency)
    for length in (2048, 8192):
        load = PassLoad.zeros(16, 1)
        load.chunk_tokens[:], load.chunk_pairs[:] = length, length**2
        per_token_ms = engine.pass_ps(load)[0] / PS_PER_S / length * 1e3
        assert 0.45 < per_token_ms < 0.8
    for rows, low, high in ((16, 60, 125), (64, 110, 200)):
        load = PassLoad.zeros(16, 1)
        load.decodes[:], load.context[:], load.samples[:] = rows, rows * 6500, rows
        step_ms = there.pass_ps(load)[0] / PS_PER_S * 1e3
        assert low < step_ms < high
    # MLA decode at 9.2K is 1.06 ms per token and GPU at the peak.
    bare = 9200 * 61 * engine.terms.model.decode_flops_per_context_token / 148e12
    assert bare * 1e3 == pytest.approx(1.06, abs=0.01)


def test_published_sizes_of_copies() -> None:
    # 10K tokens of DeepSeek KV take about 0.2 ms a layer over PCIe 5.0 (BatchGen paper) at 58 GB/s.
    lone = RooflineCost(
        load_model("deepseek-r1"),
        load_gpu("h20"),
        parse_layout("dpa16+ep16", 16),
        efficiency=Efficiency(host_link=0.9),
        gpus_per_node=1,
    )
    assert lone.copy_ps(10_000, "host") / PS_PER_S / 61 == pytest.approx(0.2e-3, rel=0.05)
    assert 5 <= lone.switch_ps() / PS_PER_S <= 10


def test_touched_experts_table() -> None:
    # scheduling notes, distinct experts under uniform routing: (E, k, B) -> count.
    for experts, top_k, batch, expected in (
        (8, 2, 4, 5.5),
        (128, 8, 16, 82),
        (256, 8, 64, 222),
        (384, 8, 256, 382),
    ):
        (found,) = touched_experts(np.array([float(batch)]), experts, top_k)
        assert found == pytest.approx(expected, rel=0.01)


@given(ep=st.sampled_from([1, 2, 8, 16]), skew=st.floats(0.0, 3.0), top_k=st.integers(1, 8))
def test_popularity_is_a_distribution_of_top_k(ep: int, skew: float, top_k: int) -> None:
    chance = popularity(64, top_k, skew)
    assert chance.sum() == pytest.approx(top_k)
    assert (chance <= 1.0 + 1e-12).all()
    assert 1.0 - 1e-9 <= heaviest_rank(64, top_k, ep, skew) <= ep + 1e-9


def test_build_refuses_negative_options() -> None:
    with pytest.raises(UserError, match="b_moe must not be negative"):
        build_cost(
            load_model("qwen3-30b-a3b"), load_gpu("h200"), parse_layout("tp1", 1), plan_b_moe=-1
        )
