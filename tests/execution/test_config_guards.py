"""Configs of every family: absurd sizes cost one line that names the field, and no memory."""

from __future__ import annotations

import contextlib
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import FAMILIES, write_model

from batchgen.errors import UserError
from batchgen.exec.config import RopeConfig, load_config
from batchgen.exec.init import random_config
from batchgen.exec.rotary import BLOCK, RotaryTable, rope_frequencies
from batchgen.exec.transformer import load_model
from batchgen.exec.weights import expected_shapes

HUGE = (20_000_000, 1 << 31, 10**30)
COMMON = (
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
    "intermediate_size",
)
OWN: dict[str, tuple[str, ...]] = {
    "llama": ("num_key_value_heads", "head_dim"),
    "mistral": ("head_dim",),
    "qwen2": ("head_dim",),
    "qwen3": ("head_dim",),
    "qwen3-moe": ("num_experts", "moe_intermediate_size", "num_experts_per_tok"),
    "mixtral": ("num_local_experts", "num_experts_per_tok"),
    "deepseek-v2": ("n_routed_experts", "kv_lora_rank", "q_lora_rank", "n_group", "topk_group"),
    "deepseek-v3": (
        "n_routed_experts",
        "n_shared_experts",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "moe_intermediate_size",
        "first_k_dense_replace",
    ),
    "gpt-oss": ("num_local_experts", "head_dim", "num_experts_per_tok"),
}


def folder(tmp_path: Path, config: dict[str, Any]) -> Path:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("arch", FAMILIES)
def test_absurd_sizes_name_their_field(arch: str, tmp_path: Path) -> None:
    right = random_config(arch, "tiny", False)
    load_config(folder(tmp_path, right))
    for name in (*COMMON, *OWN[arch]):
        for value in (*HUGE, -1, 1.5, "8", True, [], {}):
            tracemalloc.start()
            with pytest.raises(UserError) as caught:
                load_config(folder(tmp_path, right | {name: value}))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert name in str(caught.value), (name, value, str(caught.value))
            assert "\n" not in str(caught.value)
            assert peak < 1 << 20


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("llama", {"num_attention_heads": 4096, "head_dim": 1024}, "head_dim.*4096 heads of 1024"),
        ("qwen3-moe", {"num_experts": 4000, "num_hidden_layers": 1000}, "num_experts"),
        ("mistral", {"sliding_window": -4}, "sliding_window"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types"),
        ("gpt-oss", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ("gpt-oss", {"quantization_config": {"quant_method": "awq"}}, "'awq'.*mxfp4"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method"),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek-v3", {"n_group": 3}, "n_group"),
        ("deepseek-v3", {"n_group": 8, "topk_group": 8}, "n_group.*leaves 1 experts"),
        ("deepseek-v3", {"topk_group": 5}, "topk_group"),
        ("deepseek-v3", {"num_experts_per_tok": 7}, "topk_group"),
        ("deepseek-v3", {"num_key_value_heads": 2}, "num_key_value_heads"),
        (
            "deepseek-v3",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": 128}},
            "weight_block_size",
        ),
        (
            "deepseek-v3",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 1]}},
            "weight_block_size",
        ),
        ("deepseek-v3", {"quantization_config": {"quant_method": "gptq"}}, "'gptq'.*fp8"),
    ],
)
def test_fields_that_contradict_are_refused(
    arch: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_config(folder(tmp_path, random_config(arch, "tiny", False) | changes))


@settings(deadline=None, max_examples=150)
@given(data=st.data(), arch=st.sampled_from(FAMILIES))
def test_no_field_of_any_kind_is_a_traceback(
    data: st.DataObject, arch: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = random_config(arch, "tiny", False)
    value = data.draw(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(-1, 3), max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "factor", "type"]), st.text(max_size=3))
    )
    config[data.draw(st.sampled_from(sorted(config)))] = value
    path = folder(tmp_path_factory.getbasetemp() / "fuzz", config)
    with contextlib.suppress(UserError):
        loaded = load_config(path)
        assert all(size > 0 for shape in expected_shapes(loaded).values() for size in shape)


def test_a_context_of_millions_costs_nothing_before_it_is_used(tmp_path: Path) -> None:
    model = load_model(
        write_model(tmp_path / "m", "llama", max_position_embeddings=1 << 24), dtype="float32"
    )
    table = model._rotary
    assert len(table._cos) == 0
    table.at(torch.tensor([5]), 5)
    assert len(table._cos) == BLOCK


def test_angles_do_not_depend_on_when_the_table_grew() -> None:
    rope = RopeConfig(dim=20, theta=1e4)
    small, large = (RotaryTable(rope, torch.device("cpu")) for _ in range(2))
    positions = torch.arange(3 * BLOCK + 7)
    whole = large.at(positions, int(positions[-1]))
    for end in (1, BLOCK, BLOCK + 1, 3 * BLOCK + 7):
        part = small.at(positions[:end], end - 1)
        assert torch.equal(part[0], whole[0][:end])
        assert torch.equal(part[1], whole[1][:end])
    angle = 1234 * rope_frequencies(rope)
    torch.testing.assert_close(whole[0][1234, 0], angle.cos(), atol=1e-6, rtol=0)
    assert math.isclose(float(whole[1][1, 0, 0]), math.sin(1), rel_tol=1e-6)
