"""Reads the fields of a Hugging Face `config.json` into a `ModelSpec`. It reads no weights.

The catalog keeps its models in the same form, so there is one parser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.errors import DataError
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


class _Fields:
    """Typed access to a config; a missing or wrong field is a DataError that names it."""

    def __init__(self, config: Mapping[str, Any], place: str) -> None:
        self.config, self.place = config, place

    def number(self, *names: str, default: int | None = None) -> int:
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise DataError(
                    f"must be a non-negative integer, got {value!r}", path=self.place, field=name
                )
            return value
        if default is not None:
            return default
        raise DataError("is missing", path=self.place, field=names[0])

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.config.get(name, default))


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
    family = str(config.get("model_type", ""))
    if family not in _FAMILIES:
        raise DataError(
            f"model type {family!r} is not supported",
            path=place,
            field="model_type",
            remedy="supported: " + ", ".join(_FAMILIES),
        )
    traits = _FAMILIES[family]
    read = _Fields(config, place)
    layers = read.number("num_hidden_layers")
    heads = read.number("num_attention_heads")
    hidden = read.number("hidden_size")
    kv_heads = read.number("num_key_value_heads", default=heads)
    latent = read.number("kv_lora_rank", default=0)
    experts = read.number("num_local_experts", "num_experts", "n_routed_experts", default=0)
    expert_ffn = 0
    if experts:
        expert_ffn = read.number("moe_intermediate_size", "intermediate_size")
    shared = read.number("n_shared_experts", default=0)
    window, window_layers = _windows(read, layers)
    weight, expert, other = _dtypes(config, place, has_experts=experts > 0)
    try:
        return ModelSpec(
            name=name,
            family=family,
            num_layers=layers,
            hidden=hidden,
            attention="mla" if latent else ("mha" if kv_heads == heads else "gqa"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=read.number("head_dim", default=0) or hidden // max(heads, 1),
            ffn=read.number("intermediate_size"),
            vocab=read.number("vocab_size"),
            max_context=_max_context(read),
            tied=read.flag("tie_word_embeddings"),
            q_lora_rank=read.number("q_lora_rank", default=0),
            kv_lora_rank=latent,
            rope_dim=read.number("qk_rope_head_dim", default=0) if latent else 0,
            nope_dim=read.number("qk_nope_head_dim", default=0) if latent else 0,
            v_dim=read.number("v_head_dim", default=0) if latent else 0,
            window=window,
            window_layers=window_layers,
            num_experts=experts,
            top_k=read.number("num_experts_per_tok", "experts_per_token") if experts else 0,
            expert_ffn=expert_ffn,
            shared_ffn=shared * expert_ffn,
            num_shared=shared,
            first_k_dense=_dense_layers(read, layers) if experts else 0,
            routed_groups=read.number("topk_group", default=0) if experts else 0,
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


def _max_context(read: _Fields) -> int:
    declared = read.number("max_position_embeddings")
    scaling = read.config.get("rope_scaling") or {}
    # Configs of the DeepSeek kind already declare the extended length; Llama 3.1 too.
    original = scaling.get("original_max_position_embeddings")
    if isinstance(original, int) and declared == original:
        return int(original * float(scaling.get("factor", 1.0)))
    return declared


def _dense_layers(read: _Fields, layers: int) -> int:
    """Dense layers among the layers of an MoE model."""
    only = read.config.get("mlp_only_layers") or []
    step = max(read.number("decoder_sparse_step", "moe_layer_freq", default=1), 1)
    first = read.number("first_k_dense_replace", default=0)
    if step == 1:
        return min(layers, first + len(only))
    dense = [i for i in range(layers) if i < first or i in only or (i + 1) % step]
    return len(dense)


def _windows(read: _Fields, layers: int) -> tuple[int, int]:
    """(window in tokens, number of windowed layers)."""
    window = read.number("sliding_window", default=0)
    if not window or not read.flag("use_sliding_window", True):
        return 0, 0
    kinds = read.config.get("layer_types")
    if isinstance(kinds, list):
        return window, sum(kind == "sliding_attention" for kind in kinds)
    if read.config.get("model_type") == "gpt_oss":
        return window, (layers + 1) // 2  # alternating, the first layer windowed (model card)
    return window, layers


def _dtypes(config: Mapping[str, Any], place: str, *, has_experts: bool) -> tuple[str, str, str]:
    """(linear layers, routed experts, everything else) as keys of DTYPE_BYTES."""
    stored = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    base = _DTYPES.get(stored.removeprefix("torch."))
    if base is None:
        raise DataError(
            f"dtype {stored!r} is not supported",
            path=place,
            field="torch_dtype",
            remedy="supported: " + ", ".join(_DTYPES),
        )
    quantised = config.get("quantization_config")
    if not quantised:
        return base, base, base
    method = str(quantised.get("quant_method", ""))
    if method == "fp8":
        return "fp8", "fp8", base
    if method == "mxfp4" and has_experts:
        return base, "mxfp4", base
    if method in ("awq", "gptq") and quantised.get("bits", 4) == 4:
        return "int4", "int4", base
    raise DataError(
        f"quantisation {method!r} is not supported",
        path=place,
        field="quantization_config",
        remedy="supported: fp8, mxfp4 experts, awq and gptq with 4 bits",
    )
