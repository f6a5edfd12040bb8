"""The catalog: parameter counts against the published ones, sources, lookup by name or folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from batchgen.errors import DataError, UserError
from batchgen.hardware import gpu_names, load_gpu
from batchgen.model import load_model, model_names

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", model_names())
def test_parameters_within_one_percent_of_published(name: str) -> None:
    model = load_model(name)
    assert model.published_parameters > 0
    assert model.total_parameters == pytest.approx(model.published_parameters, rel=0.01)
    assert model.source.startswith("https://")


@pytest.mark.parametrize(
    ("name", "active"),
    [  # model cards: activated parameters per token
        ("deepseek-r1", 37e9),
        ("qwen3-30b-a3b", 3.3e9),
        ("qwen3-235b-a22b", 22e9),
        ("mixtral-8x7b", 12.9e9),
        ("mixtral-8x22b", 39e9),
    ],
)
def test_active_parameters(name: str, active: float) -> None:
    assert load_model(name).active_parameters == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("deepseek-v3", 70_272),
        ("qwen3-30b-a3b", 98_304),
        ("qwen3-8b", 147_456),
        ("llama-2-7b", 524_288),
    ],
)
def test_kv_bytes_per_token(name: str, kv_bytes: int) -> None:
    model = load_model(name)
    assert model.kv_bytes_per_token == kv_bytes
    assert model.kv_bytes(100) == 100 * kv_bytes


def test_sliding_window_stops_growing() -> None:
    model = load_model("gpt-oss-120b")
    layer = 2 * 8 * 64 * 2
    assert model.window_layers == 18
    assert model.kv_bytes(64) == 36 * layer * 64
    assert model.kv_bytes(1000) == 18 * layer * (1000 + 128)
    assert model.kv_bytes(1001) - model.kv_bytes(1000) == model.kv_bytes_per_token


def test_weight_bytes_follow_the_dtype_of_each_module() -> None:
    oss = load_model("gpt-oss-120b")
    by_module, count = oss.weight_bytes_by_module(), oss.parameters_by_module()
    assert by_module["experts"] == pytest.approx(count["experts"] * 17 / 32)
    assert by_module["attention"] == 2 * count["attention"]
    deepseek = load_model("deepseek-r1")
    # Published sizes per GPU: attention 11.4 GB and embeddings 3.7 GB replicated.
    by_module = deepseek.weight_bytes_by_module()
    assert by_module["attention"] / 1e9 == pytest.approx(11.4, abs=0.1)
    assert (by_module["embedding"] + by_module["lm_head"]) / 1e9 == pytest.approx(3.7, abs=0.05)


def test_flops_are_twice_the_matmul_parameters() -> None:
    model = load_model("qwen3-30b-a3b")
    # 3.04e9 matmul parameters per token with the LM head: the sum over its modules.
    assert sum(model.flops_per_token().values()) == pytest.approx(2 * 3.04e9, rel=0.005)


@pytest.mark.parametrize("spelling", ["DeepSeek-R1", "deepseek_r1", "deepseek-ai/DeepSeek-R1"])
def test_names_ignore_case_and_punctuation(spelling: str) -> None:
    assert load_model(spelling).name == "deepseek-r1"


def test_unknown_names_suggest_close_ones() -> None:
    with pytest.raises(UserError, match=r"unknown model 'lama-3\.1-8b'.*llama-3\.1-8b"):
        load_model("lama-3.1-8b")
    with pytest.raises(UserError, match=r"unknown GPU 'h10'.*h100"):
        load_gpu("h10")


def test_every_hardware_number_has_a_source() -> None:
    entries = yaml.safe_load((ROOT / "batchgen/catalog/hardware.yaml").read_text())
    for name, entry in entries.items():
        fields = dict(entry)
        fields.pop("aliases")
        peaks = fields.pop("peak_flops")
        for field, record in [*fields.items(), *peaks.items()]:
            assert set(record) == {"value", "source"}, (name, field)
            assert isinstance(record["value"], int | float), (name, field)
            assert len(record["source"]) > 6, (name, field)


def test_marketed_sizes_are_real_bytes() -> None:
    assert load_gpu("H20").hbm_bytes == pytest.approx(102.6e9, rel=1e-3)
    assert load_gpu("h200").hbm_bytes == pytest.approx(150.7e9, rel=1e-3)
    assert {"h20", "h100", "h200", "h800", "a100", "a800", "a5000", "b200", "gb200"} <= set(
        gpu_names()
    )


def test_peak_for_a_dtype_without_units_is_bf16() -> None:
    a100, b200 = load_gpu("a100-80g"), load_gpu("b200")
    assert a100.peak_for("fp8") == a100.peak_flops["bf16"]
    assert a100.peak_for("mxfp4") == a100.peak_flops["bf16"]
    assert b200.peak_for("mxfp4") == b200.peak_flops["fp8"]


def _tiny() -> dict[str, object]:
    return {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 256,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def test_model_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_tiny()))
    model = load_model(tmp_path)
    attention = 64 * 16 * (2 * 4 + 2 * 2) + 2 * 16
    layer = attention + 3 * 64 * 128 + 2 * 64
    assert model.total_parameters == 2 * layer + 256 * 64 + 64
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert model.attention == "gqa"


def test_folder_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load_model(tmp_path)
    file.write_text(json.dumps({**_tiny(), "model_type": "bert"}))
    with pytest.raises(DataError, match="'model_type': 'bert' is not supported"):
        load_model(tmp_path)
    broken = _tiny()
    del broken["hidden_size"]
    file.write_text(json.dumps(broken))
    with pytest.raises(DataError, match="field 'hidden_size': is missing"):
        load_model(tmp_path)
    file.write_text(json.dumps({**_tiny(), "num_key_value_heads": 3}))
    with pytest.raises(DataError, match="multiple of num_kv_heads"):
        load_model(tmp_path)
    file.write_text(json.dumps({**_tiny(), "num_hidden_layers": "two"}))
    with pytest.raises(DataError, match="must be an integer from 1"):
        load_model(tmp_path)


def test_parameter_count_agrees_with_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    common = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "vocab_size": 128,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    latent = {
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
    }
    cases = {
        "llama": common,
        "qwen2": common,
        "qwen3": common,
        "qwen3_moe": {**common, **experts},
        "mixtral": {**common, "num_local_experts": 4, "num_experts_per_tok": 2},
        "deepseek_v3": {**common, **latent},
        "gpt_oss": {**common, "num_local_experts": 4, "num_experts_per_tok": 2},
    }
    for family, fields in cases.items():
        config = transformers.AutoConfig.for_model(family, **fields)
        with torch.device("meta"):
            net = transformers.AutoModelForCausalLM.from_config(config)
        counted = sum(parameter.numel() for parameter in net.parameters())
        # The correction bias of the DeepSeek router is a buffer there and a weight in the file.
        counted += sum(
            buffer.numel()
            for name, buffer in net.named_buffers()
            if name.endswith("e_score_correction_bias")
        )
        folder = tmp_path / family
        config.save_pretrained(folder)
        assert load_model(folder).total_parameters == counted, family
