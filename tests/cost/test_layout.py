"""Layouts: spec strings both ways, mistakes in one line, the default rule, and KV capacity."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.cost.build import build_cost
from batchgen.cost.capacity import capacity, workspace_bytes
from batchgen.cost.pipeline import PipelineCost
from batchgen.cost.residency import Residency
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import (
    Layout,
    default_layout,
    parse_layout,
    stage_weight_bytes,
    weight_bytes_per_gpu,
)
from batchgen.model import ModelSpec, load_model
from batchgen.pipeline import stage_layers, stage_models
from batchgen.planning import build_plan, plan_options
from batchgen.policy.presets import find_preset


@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    attention_dp=st.sampled_from([1, 2, 16]),
    expert=st.booleans(),
    stages=st.integers(1, 5),
    engines=st.integers(1, 9),
    spare=st.none() | st.integers(0, 300),
)
def test_spec_strings_go_both_ways(
    tp: int, attention_dp: int, expert: bool, stages: int, engines: int, spare: int | None
) -> None:
    stages = stages if attention_dp == 1 else 1
    layout = Layout(
        tp=tp,
        attention_dp=attention_dp,
        ep=tp * attention_dp if expert else 1,
        pp=stages,
        num_engines=engines,
        spare_experts=spare if expert and tp * attention_dp > 1 else None,
    )
    assert parse_layout(str(layout), layout.num_gpus) == layout
    assert layout.ranks_per_engine * layout.gpus_per_rank == layout.gpus_per_stage
    assert layout.num_gpus == layout.gpus_per_stage * stages * engines
    assert layout.stage.gpus_per_engine == layout.gpus_per_stage
    assert layout.stage.expert_tp == layout.expert_tp
    assert layout.stage.spare_experts == layout.spare_experts


def test_known_specs() -> None:
    assert parse_layout("tp8", 128) == Layout(tp=8, num_engines=16)
    assert parse_layout("dp128", 128) == Layout(num_engines=128)
    lockstep = parse_layout("dpa16+ep16", 128)
    assert (lockstep.num_engines, lockstep.ranks_per_engine, lockstep.gpus_per_rank) == (8, 16, 1)
    assert str(lockstep) == "dpa16+ep16,dp8"
    assert str(parse_layout("tp2,dp4", 8)) == "tp2,dp4"
    assert parse_layout("tp8+pp2", 64) == Layout(tp=8, pp=2, num_engines=4)
    assert str(parse_layout("pp4,dp2", 8)) == "pp4,dp2"
    assert str(parse_layout("pp4", 4)) == "pp4"


@pytest.mark.parametrize(
    ("spec", "gpus", "text"),
    [
        ("tp3", 8, "takes 6 GPUs, not 8"),
        ("tp2,dp4", 128, "takes 8 GPUs, not 128"),
        ("tp16", 8, "takes 16 GPUs, not 8"),
        ("cp2", 8, "unknown part 'cp2'"),
        ("pp3", 8, "takes 6 GPUs, not 8"),
        ("tp4+pp4", 8, "takes 16 GPUs, not 8"),
        ("pp2,pp4", 8, "given twice"),
        ("pp0", 8, "at least 1"),
        ("dpa2+pp2", 8, "stages of data-parallel attention"),
        ("tp4+ep8+pp2", 8, "ep8 does not divide the 4 GPUs of a stage"),
        ("", 8, "unknown part ''"),
        ("tp2,tp4", 8, "given twice"),
        ("tp0", 8, "at least 1"),
        ("dpa8+ep3", 8, "ep3 does not divide"),
    ],
)
def test_mistakes_name_the_remedy(spec: str, gpus: int, text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        parse_layout(spec, gpus)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "gpu", "gpus", "spec"),
    [
        ("llama-3.1-8b", "h100", 128, "dp128"),
        ("llama-3.1-8b", "h100", 1, "tp1"),
        ("llama-3.1-70b", "h100", 8, "tp4,dp2"),
        ("deepseek-r1", "h20", 128, "dpa16+ep16,dp8"),
        ("deepseek-r1", "h200", 8, "dpa8+ep8"),
        ("deepseek-r1", "h20", 8, "tp8"),
        ("gpt-oss-120b", "h100", 2, "tp2"),
    ],
)
def test_default_layout(model: str, gpu: str, gpus: int, spec: str) -> None:
    layout, why = default_layout(load_model(model), load_gpu(gpu), gpus)
    assert str(layout) == spec
    assert why.startswith(f"{spec}: ")
    capacity(load_model(model), load_gpu(gpu), layout)


def test_default_layout_refuses_what_cannot_fit() -> None:
    with pytest.raises(UserError, match=r"deepseek-r1 .* does not fit on 1 x a5000") as caught:
        default_layout(load_model("deepseek-r1"), load_gpu("a5000"), 1)
    assert "--gpus" in caught.value.remedy


def test_weights_of_deepseek_per_gpu_as_published() -> None:
    # Published per GPU under DP attention + EP16, in GB.
    held = weight_bytes_per_gpu(load_model("deepseek-r1"), parse_layout("dpa16+ep16", 16))
    published = {"experts": 40.9, "attention": 11.4, "shared_experts": 2.6, "dense_ffn": 1.2}
    for module, size in published.items():
        assert held[module] / 1e9 == pytest.approx(size, abs=0.06), module
    assert (held["embedding"] + held["lm_head"]) / 1e9 == pytest.approx(3.7, abs=0.05)


def test_tensor_parallel_weights_add_up() -> None:
    model = load_model("llama-3.1-70b")
    for tp in (1, 2, 4, 8):
        held = weight_bytes_per_gpu(model, Layout(tp=tp))
        assert tp * sum(held.values()) == pytest.approx(model.weight_bytes, rel=1e-3)


def test_capacity_adds_up() -> None:
    model, gpu = load_model("deepseek-r1"), load_gpu("h20")
    room = capacity(model, gpu, parse_layout("dpa16+ep16", 16))
    used = room.hbm_pages * room.page_tokens * room.kv_bytes_per_token
    total = used + room.weight_bytes_per_gpu + room.workspace_bytes
    assert total <= 0.9 * gpu.hbm_bytes < total + room.page_tokens * room.kv_bytes_per_token
    assert room.kv_bytes_per_token == 70_272
    # Latent KV is copied to every GPU of a tensor-parallel group, heads are split.
    assert capacity(model, gpu, Layout(tp=8)).kv_bytes_per_token == 70_272
    dense = load_model("llama-3.1-70b")
    assert capacity(dense, gpu, Layout(tp=8)).kv_bytes_per_token == 327_680 // 8
    assert capacity(dense, gpu, Layout(tp=16)).kv_bytes_per_token == 327_680 // 8
    host = 0.9 * (gpu.host_bytes - model.weight_bytes) / 70_272
    assert room.host_pages * 64 == pytest.approx(host, rel=1e-4)


def test_capacity_refuses_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"mixtral-8x7b does not fit on a5000 under layout tp1"):
        capacity(load_model("mixtral-8x7b"), load_gpu("a5000"), Layout())
    with pytest.raises(UserError, match="tp3 does not divide the 32 attention heads"):
        capacity(load_model("llama-3.1-8b"), load_gpu("h100"), Layout(tp=3))
    with pytest.raises(UserError, match="has no experts to spread"):
        capacity(load_model("llama-3.1-8b"), load_gpu("h100"), Layout(tp=2, ep=2))
    with pytest.raises(UserError, match="81 stages exceed the 80 layers"):
        capacity(load_model("llama-3.1-70b"), load_gpu("h100"), Layout(pp=81))


# -- pipelines ------------------------------------------------------------------------------------


@given(layers=st.integers(1, 200), data=st.data())
def test_stages_share_the_layers(layers: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, layers))
    spans = stage_layers(layers, stages)
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == layers
    counts = [end - begin for begin, end in spans]
    assert max(counts) - min(counts) <= 1
    assert counts[-1] == min(counts)  # beside the head


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-r1", "gpt-oss-120b"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stages", [2, 3, 8])
def test_stages_make_up_the_model(name: str, tied: bool, stages: int) -> None:
    model = replace(load_model(name), tied=tied)
    parts = stage_models(model, stages)
    for field in ("num_layers", "dense_layers", "moe_layers", "full_layers", "kv_bytes_per_token"):
        assert sum(getattr(part, field) for part in parts) == getattr(model, field), field
    held = stage_weight_bytes(model, Layout(pp=stages))
    again = model.embedding_parameters * 2 if tied else 0  # the last has a copy, in bf16
    total = sum(sum(one.values()) for one in held)
    assert total == pytest.approx(model.weight_bytes + again, rel=1e-6)
    assert weight_bytes_per_gpu(model, Layout(pp=stages)) in held


def test_a_pipeline_has_the_pages_of_its_fullest_stage() -> None:
    model, gpu = load_model("llama-3.1-70b"), load_gpu("h100")
    one = capacity(model, gpu, Layout(tp=8, pp=2))
    assert one.weight_bytes_per_gpu == sum(weight_bytes_per_gpu(model, Layout(tp=8, pp=2)).values())
    assert one.kv_bytes_per_token == 327_680 // 8 // 2
    used = one.hbm_pages * one.page_tokens * one.kv_bytes_per_token
    assert used <= one.kv_pool_bytes < used + one.page_tokens * one.kv_bytes_per_token
    plan, sizes = build_plan(
        model,
        gpu,
        parse_layout("tp4+pp2", 32),
        find_preset("vllm"),
        gpus_per_node=8,
        max_context=model.max_context,
        options=plan_options({"plan.prefill_engines": "1"}),
    )
    assert [spec.node for spec in plan.engines] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {spec.hbm_pages for spec in plan.engines} == {sizes.hbm_pages // 2}
    assert {spec.host_pages for spec in plan.engines} == {sizes.host_pages // 2}
    assert sum(spec.num_gpus for spec in plan.engines) == 32
    assert [spec.role for spec in plan.engines] == ["prefill"] * 2 + ["decode"] * 6


def of(model: ModelSpec, spec: str, gpus: int, **options: float | str) -> PipelineCost:
    cost = build_cost(model, load_gpu("h100"), parse_layout(spec, gpus), **options)  # type: ignore[arg-type]
    assert isinstance(cost, PipelineCost)
    return cost


@pytest.mark.parametrize("costs", ["roofline", "measured"])
def test_stages_take_their_part_of_a_pass(costs: str) -> None:
    """All stages together take as long as one engine of the same tp, but for the host work of the
    stages behind the first and the hops."""
    model = load_model("llama-3.1-70b")
    whole = build_cost(model, load_gpu("h200"), Layout(tp=2), costs=costs)
    pipe = build_cost(model, load_gpu("h200"), Layout(tp=2, pp=4), costs=costs)
    assert isinstance(pipe, PipelineCost)
    step_ps = 300_000_000
    for load in (
        (64, 64 * 3000, 0, 0, 0, 64, 0),
        (0, 0, 4096, 4096**2, 0, 1, 0),
        (30, 30 * 900, 512, 512**2 + 2 * 512 * 4000, 4000, 30, 542),
    ):
        stages = pipe.stages_ps(load)
        assert sum(stages) == pytest.approx(whole.time_ps([load]) + 3 * step_ps, rel=1e-4)
        assert stages[0] == stages[1] == stages[2] < stages[3]  # which has the head
        assert pipe.time_ps([load]) == sum(stages) + sum(pipe.hops_ps(load[0] + load[2]))
        assert pipe.pass_one_ps(*load) == pipe.time_ps([load])
    start, slope = pipe.decode_affine(64, True)
    for context in (0, 64, 700_000):
        assert start + slope * context == pipe.pass_one_ps(64, context, 0, 0, 0, 64, 64)


def test_hops_take_the_links_between_stages() -> None:
    """8,192 bytes x 2 of a token, over NVLink inside a node, over a network link between two."""
    model, gpu = load_model("llama-3.1-70b"), load_gpu("h100")
    inside, across, last = of(model, "pp4", 4, gpus_per_node=2).hops_ps(1000)
    volume = 1000 * 8192 * 2
    assert (
        inside
        == last
        == round(1e12 * (volume / (gpu.intra_bytes_per_s * 0.7) + gpu.intra_latency_s))
    )
    assert across == round(1e12 * (volume / (gpu.inter_bytes_per_s * 0.85) + gpu.inter_latency_s))
    (wide,) = of(model, "tp8+pp2", 16).hops_ps(1000)  # eight links, and gathered behind them
    seconds = volume / 8 / (gpu.inter_bytes_per_s * 0.85) + gpu.inter_latency_s
    seconds += volume * 7 / 8 / (gpu.intra_bytes_per_s * 0.7) + gpu.intra_latency_s
    assert wide == pytest.approx(1e12 * seconds, abs=2)
    assert of(model, "tp8+pp2", 16).hops_ps(0) == [0]


def test_pipelines_refuse_what_they_do_not_know() -> None:
    model, gpu, layout = load_model("llama-3.1-70b"), load_gpu("h100"), Layout(tp=4, pp=2)
    places = Residency(weights="layers")
    for refused in (
        lambda: capacity(model, gpu, layout, residency=places),
        lambda: build_cost(model, gpu, layout, residency=places),
    ):
        with pytest.raises(UserError, match=r"tp4\+pp2: plan.weights.* not simulated"):
            refused()
    with pytest.raises(UserError, match="profiles hold no single stages"):
        build_cost(model, gpu, layout, profile="profile.json")
    with pytest.raises(ValueError, match="do not go together"):
        Layout(pp=2, attention_dp=2)


def test_experts_in_groups_leave_more_to_kv() -> None:
    gpu, layout = load_gpu("h100"), Layout(tp=2, attention_dp=2, ep=4)
    model, dense = load_model("qwen3-30b-a3b"), load_model("qwen3-8b")
    pages = [
        capacity(model, gpu, layout, token_budget=16384, b_moe=tokens).hbm_pages
        for tokens in (2048, 8192, 32768, 0)
    ]
    assert pages[0] > pages[1] > pages[2] == pages[3]  # two ranks of 16,384 tokens are 32,768
    same = [
        workspace_bytes(dense, Layout(), token_budget=8192, max_num_seqs=64, b_moe=tokens)
        for tokens in (0, 1024)
    ]
    assert same[0] == same[1]
