"""The config.json of Qwen3 models of any size, dense or of experts, for random weights."""

from __future__ import annotations

from typing import Any


def qwen_config(**sizes: Any) -> dict[str, Any]:
    """A dense one unless `sizes` say `num_experts`; no token ends a row by itself."""
    moe = "num_experts" in sizes
    config = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"],
        "model_type": "qwen3_moe" if moe else "qwen3",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
        "bos_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    if moe:
        config |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return config | sizes
