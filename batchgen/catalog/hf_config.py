"""Reads the fields of a Hugging Face `config.json` into a `ModelSpec`. It reads no weights.

The catalog keeps its models in the same form, so there is one parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgen.errors import DataError
from batchgen.fields import (
    MAX_ALL_EXPERTS,
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_SIZE,
    MAX_VOCAB,
    Fields,
)
from batchgen.model import ModelSpec

# model_type -> attention biases default, norms of queries and keys (per head, or joint over all).
# Sources: the configuration and modelling files of these families in Hugging Face transformers.
_FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
    "qwen3_moe": {"qk_norm": True},
    "deepseek_v2": {},
    "deepseek_v3": {"router_bias": True},
    "kimi_k2": {"router_bias": True},
    "minimax_m2": {"qk_norm": True, "qk_norm_joint": True, "router_bias": True},
    "gpt_oss": {
        "attention_bias": True,
        "output_bias": True,
        "attention_sinks": True,
        "router_bias": True,
        "expert_bias": True,
    },
}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8"}


def spec_from_config(
    config: Mapping[str, Any],
    *,
    name: str,
    place: str,
    published_parameters: float = 0.0,
    source: str = "",
) -> ModelSpec:
    """A `ModelSpec` from the fields of `config`; `place` is the file named in errors.

    Raises DataError for an unsupported family, a missing field or contradicting numbers.
    """
    read = Fields(Path(place), dict(config))
    family = read.choice("model_type", "", tuple(_FAMILIES))
    traits = _FAMILIES[family]
    layers = read.integer("num_hidden_layers", high=MAX_LAYERS)
    heads = read.integer("num_attention_heads", high=MAX_HEADS)
    hidden = read.integer("hidden_size")
    kv_heads = read.integer("num_key_value_heads", heads, high=MAX_HEADS)
    latent = _count(read, "kv_lora_rank")
    experts = _count(
        read, *("num_local_experts", "num_experts", "n_routed_experts"), high=MAX_EXPERTS
    )
    if experts * layers > MAX_ALL_EXPERTS:
        raise read.error("num_experts", f"{experts} in every layer are more than can be handled")
    expert_ffn = _count(read, "moe_intermediate_size", "intermediate_size") if experts else 0
    shared = _count(read, "n_shared_experts", high=MAX_EXPERTS)
    window, window_layers = _windows(read, layers)
    weight, expert, other = _dtypes(read, has_experts=experts > 0)
    try:
        return ModelSpec(
            name=name,
            family=family,
            num_layers=layers,
            hidden=hidden,
            attention="mla" if latent else ("mha" if kv_heads == heads else "gqa"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=_count(read, "head_dim", high=MAX_HEAD_DIM) or max(hidden // heads, 1),
            ffn=_count(read, "intermediate_size"),
            vocab=read.integer("vocab_size", high=MAX_VOCAB),
            max_context=_max_context(read),
            tied=read.flag("tie_word_embeddings", False),
            q_lora_rank=_count(read, "q_lora_rank"),
            kv_lora_rank=latent,
            rope_dim=_count(read, "qk_rope_head_dim", high=MAX_HEAD_DIM) if latent else 0,
            nope_dim=_count(read, "qk_nope_head_dim", high=MAX_HEAD_DIM) if latent else 0,
            v_dim=_count(read, "v_head_dim", high=MAX_HEAD_DIM) if latent else 0,
            window=window,
            window_layers=window_layers,
            num_experts=experts,
            top_k=_count(read, "num_experts_per_tok", "experts_per_token") if experts else 0,
            expert_ffn=expert_ffn,
            shared_ffn=shared * expert_ffn,
            num_shared=shared,
            first_k_dense=_dense_layers(read, layers) if experts else 0,
            routed_groups=_count(read, "topk_group") if experts else 0,
            router_bias=traits.get("router_bias", False),
            expert_bias=traits.get("expert_bias", False),
            attention_bias=read.flag("attention_bias", traits.get("attention_bias", False)),
            output_bias=traits.get("output_bias", False),
            attention_sinks=traits.get("attention_sinks", False),
            qk_norm=traits.get("qk_norm", False),
            qk_norm_joint=traits.get("qk_norm_joint", False),
            weight_dtype=weight,
            expert_dtype=expert,
            embedding_dtype=other,
            kv_dtype="bf16" if other == "fp8" else other,
            published_parameters=published_parameters,
            source=source or place,
        )
    except ValueError as error:
        raise DataError(str(error), path=place) from error


def _count(read: Fields, *names: str, high: int = MAX_SIZE) -> int:
    """The first of these fields that is there, 0 if none is."""
    name = next((name for name in names if read.values.get(name) is not None), names[0])
    return read.integer(name, 0, low=0, high=high)


def _max_context(read: Fields) -> int:
    declared = read.integer("max_position_embeddings", high=MAX_CONTEXT)
    scaling = read.section("rope_scaling")
    # Configs of the DeepSeek kind already declare the extended length; Llama 3.1 too.
    original = scaling.integer("original_max_position_embeddings", 0, low=0, high=MAX_CONTEXT)
    factor = max(scaling.number("factor", 1.0), 1.0)
    if declared == original:
        return int(min(original * factor, MAX_CONTEXT))
    return declared


def _dense_layers(read: Fields, layers: int) -> int:
    """Dense layers among the layers of an MoE model."""
    only = read.items("mlp_only_layers") or []
    if not all(isinstance(i, int) and 0 <= i < layers for i in only):
        raise read.error("mlp_only_layers", f"must list layers from 0 to {layers - 1}")
    step = max(_count(read, "decoder_sparse_step", "moe_layer_freq"), 1)
    first = _count(read, "first_k_dense_replace")
    dense = [i for i in range(layers) if i < first or i in only or (i + 1) % step]
    return len(dense)


def _windows(read: Fields, layers: int) -> tuple[int, int]:
    """(window in tokens, number of windowed layers)."""
    window = _count(read, "sliding_window", high=1 << 31)
    if not window or not read.flag("use_sliding_window", True):
        return 0, 0
    kinds = read.items("layer_types")
    if kinds is not None:
        return window, min(sum(kind == "sliding_attention" for kind in kinds), layers)
    if read.values.get("model_type") == "gpt_oss":
        return window, (layers + 1) // 2  # alternating, the first layer windowed (model card)
    return window, layers


def _dtypes(read: Fields, *, has_experts: bool) -> tuple[str, str, str]:
    """(linear layers, routed experts, everything else) as keys of DTYPE_BYTES."""
    name = "torch_dtype" if read.values.get("torch_dtype") else "dtype"
    stored = read.values.get(name) or "bfloat16"
    base = _DTYPES.get(stored.removeprefix("torch.")) if isinstance(stored, str) else None
    if base is None:
        remedy = "supported: " + ", ".join(_DTYPES)
        raise read.error(name, f"dtype {stored!r:.60} is not supported", remedy)
    quantised = read.section("quantization_config").values
    if not quantised:
        return base, base, base
    method = quantised.get("quant_method")
    if method == "fp8":
        return "fp8", "fp8", base
    if method == "mxfp4" and has_experts:
        return base, "mxfp4", base
    if method in ("awq", "gptq") and quantised.get("bits", 4) == 4:
        return "int4", "int4", base
    remedy = "supported: fp8, mxfp4 experts, awq and gptq with 4 bits"
    raise read.error("quantization_config", f"method {method!r:.40} is not supported", remedy)
