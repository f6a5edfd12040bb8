"""Oracle: our ragged paged passes against Hugging Face transformers, teacher forced, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import Passes, ragged_logits, write_model

from batchgen.exec.compiled import is_compiled
from batchgen.exec.worker import Worker

transformers = pytest.importorskip("transformers")

LENGTHS = (1, 7, 8, 9, 40, 61)
NUM_PROMPTS = (1, 3, 8, 9, 25, 30)
VOCAB = 259  # no multiple of anything

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MSCALE = {"mscale": 0.7, "mscale_all_dim": 1.1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-3.1-rope": ("llama", {"rope_scaling": LLAMA3}),
    "llama-5-rope": ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}),
    "llama-linear-rope": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "llama-heads-of-80-groups-of-1": (
        "llama",
        {"head_dim": 80, "num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 60},
    ),
    "llama-heads-of-96-groups-of-7": (
        "llama",
        {"head_dim": 96, "num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 70},
    ),
    "mistral": ("mistral", {"sliding_window": 9}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "mistral-window-of-1": ("mistral", {"sliding_window": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2-heads-of-112-groups-of-8": (
        "qwen2",
        # The class divides; newer files name the size.
        {"head_dim": 112, "num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 896},
    ),
    "qwen2-windows": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 11,
            "max_window_layers": 1,
            "num_hidden_layers": 3,
        },
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3-heads-of-64-groups-of-5": (
        "qwen3",
        {"head_dim": 64, "num_attention_heads": 10, "num_key_value_heads": 2},
    ),
    "qwen3-moe": ("qwen3-moe", {}),
    "qwen3-moe-plain-topk": ("qwen3-moe", {"norm_topk_prob": False}),
    "qwen3-moe-some-dense": ("qwen3-moe", {"mlp_only_layers": [1], "num_hidden_layers": 3}),
    "mixtral": ("mixtral", {}),
    "mixtral-window": ("mixtral", {"sliding_window": 10, "num_local_experts": 3}),
    "deepseek-v2": ("deepseek-v2", {}),
    "deepseek-v2-lite": (
        "deepseek-v2",
        {"q_lora_rank": None, "topk_method": "greedy", "n_shared_experts": 2},
    ),
    "deepseek-v2-yarn": ("deepseek-v2", {"rope_scaling": YARN | MSCALE, "v_head_dim": 24}),
    "deepseek-v3": ("deepseek-v3", {"num_hidden_layers": 3}),
    "deepseek-v3-large-heads": (
        "deepseek-v3",
        {
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "kv_lora_rank": 80,
            "norm_topk_prob": False,
        },
    ),
    "deepseek-v3-yarn": (
        "deepseek-v3",
        {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "attention_bias": True},
    ),
    "deepseek-v3-halves": ("deepseek-v3", {"rope_interleave": False, "q_lora_rank": None}),
    "gpt-oss": ("gpt-oss", {"num_hidden_layers": 3, "sliding_window": 10}),
    "gpt-oss-full": (
        "gpt-oss",
        {
            "layer_types": ["full_attention", "full_attention"],
            "swiglu_limit": 0.5,
            "rope_scaling": YARN | {"truncate": True},
        },
    ),
    "gpt-oss-heads-of-64-groups-of-8": (
        "gpt-oss",
        {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 1},
    ),
}


def oracle(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )


@pytest.fixture(params=["compiled", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "torch":
        monkeypatch.setenv("BATCHGEN_COMPILED", "0")
    elif not is_compiled(torch.float32):
        pytest.skip("no C++ compiler here")
    return name


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_oracle(case: str, backend: str, tmp_path: Path) -> None:
    arch, changes = CASES[case]
    directory = write_model(tmp_path / "m", arch, seed=3, vocab_size=VOCAB, **changes)
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, VOCAB, n).tolist() for n in LENGTHS]
    passes = Passes(directory, page_tokens=8)
    assert passes.model.kernels == backend
    ours = ragged_logits(passes, rows, NUM_PROMPTS, chunk=5)
    ours_whole = ragged_logits(Passes(directory, page_tokens=24), rows, LENGTHS, chunk=64)
    model = oracle(directory)
    for row, pieces, whole in zip(rows, ours, ours_whole, strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([row])).logits[0]
        torch.testing.assert_close(pieces, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)


def test_the_transformers_5_layout_of_experts_is_read_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = write_model(tmp_path / "m", "qwen3-moe", seed=5)
    rows = [[1, 2, 3, 4]]
    before = ragged_logits(Passes(directory), rows, [4], chunk=8)[0]
    tensors = load_file(directory / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = {
            name: [tensors.pop(f"{prefix}{e}.{name}_proj.weight") for e in range(8)]
            for name in ("gate", "up", "down")
        }
        gate_up = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        tensors[prefix + "gate_up_proj"] = torch.stack(gate_up)
        tensors[prefix + "down_proj"] = torch.stack(parts["down"])
    save_file(tensors, directory / "model.safetensors")
    assert torch.equal(before, ragged_logits(Passes(directory), rows, [4], chunk=8)[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("arch", ["qwen3-moe", "deepseek-v3", "gpt-oss"])
def test_short_dtypes_run_near_the_float32_answer(arch: str, dtype: str, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m", arch, seed=2)
    logits = []
    for kind in ("float32", dtype):
        worker = Worker(directory, page_tokens=8, hbm_pages=8, host_pages=0, dtype=kind)
        worker.add_row(0, [5, 6, 7], max_output=4, stop_ids=frozenset())
        seen: list[torch.Tensor] = []
        forward = worker.model.forward
        worker.model.forward = lambda *a, f=forward, s=seen: s.append(f(*a)) or s[-1]
        worker.run_pass([], [(0, 0, 3, True)])
        logits.append(seen[0])
    assert logits[1].dtype == torch.float32
    torch.testing.assert_close(logits[1], logits[0], atol=0.3, rtol=0)
