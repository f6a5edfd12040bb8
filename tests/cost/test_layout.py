"""Layouts: spec strings both ways, mistakes in one line, the default rule, and KV capacity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.cost.capacity import capacity
from batchgen.errors import UserError
from batchgen.hardware import load_gpu
from batchgen.layout import Layout, default_layout, parse_layout, weight_bytes_per_gpu
from batchgen.model import load_model


@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    attention_dp=st.sampled_from([1, 2, 16]),
    expert=st.booleans(),
    engines=st.integers(1, 9),
)
def test_spec_strings_go_both_ways(tp: int, attention_dp: int, expert: bool, engines: int) -> None:
    layout = Layout(
        tp=tp,
        attention_dp=attention_dp,
        ep=tp * attention_dp if expert else 1,
        num_engines=engines,
    )
    assert parse_layout(str(layout), layout.num_gpus) == layout
    assert layout.ranks_per_engine * layout.gpus_per_rank == layout.gpus_per_engine


def test_known_specs() -> None:
    assert parse_layout("tp8", 128) == Layout(tp=8, num_engines=16)
    assert parse_layout("dp128", 128) == Layout(num_engines=128)
    lockstep = parse_layout("dpa16+ep16", 128)
    assert (lockstep.num_engines, lockstep.ranks_per_engine, lockstep.gpus_per_rank) == (8, 16, 1)
    assert str(lockstep) == "dpa16+ep16,dp8"
    assert str(parse_layout("tp2,dp4", 8)) == "tp2,dp4"


@pytest.mark.parametrize(
    ("spec", "gpus", "text"),
    [
        ("tp3", 8, "takes 6 GPUs, not 8"),
        ("tp2,dp4", 128, "takes 8 GPUs, not 128"),
        ("tp16", 8, "takes 16 GPUs, not 8"),
        ("pp2", 8, "unknown part 'pp2'"),
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
