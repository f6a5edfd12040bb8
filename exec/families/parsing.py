"""What the config.json files of several families have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from batchgen.exec.config import (
    AttentionConfig,
    LayerConfig,
    Llama3Scaling,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    YarnScaling,
)
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


def model_config(
    fields: Fields,
    family: str,
    layers: Sequence[LayerConfig],
    rope: RopeConfig,
    *,
    eps: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """A `ModelConfig` from the fields that mean the same everywhere. `eps`: of the norms, if the
    file says nothing."""
    if (activation := fields.values.get("hidden_act", "silu")) != "silu":
        raise fields.error("hidden_act", f"only silu is supported, got {activation!r:.60}")
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size", high=MAX_VOCAB),
        hidden_size=fields.integer("hidden_size"),
        layers=tuple(layers),
        max_context=fields.integer("max_position_embeddings", high=MAX_CONTEXT),
        rms_eps=fields.number("rms_norm_eps", eps),
        rope=rope,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        **others,
    )


def num_layers(fields: Fields) -> int:
    """The number of layers, which bounds every loop over them."""
    return fields.integer("num_hidden_layers", high=MAX_LAYERS)


def grouped_heads(fields: Fields, head_dim: int | None = None, **others: Any) -> AttentionConfig:
    """Grouped-query attention; `head_dim` if the file says nothing, else hidden size / heads."""
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads", high=MAX_HEADS)
    num_kv_heads = fields.integer("num_key_value_heads", num_heads, high=MAX_HEADS)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"{num_kv_heads} does not divide {num_heads}")
    head_dim = fields.integer("head_dim", head_dim or hidden_size // num_heads, high=MAX_HEAD_DIM)
    if head_dim % 2:
        raise fields.error("head_dim", f"must be even for rotary embedding, got {head_dim}")
    check_heads(fields, "head_dim", num_heads, head_dim)
    return AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        **others,
    )


def check_heads(fields: Fields, field: str, num_heads: int, head_dim: int) -> None:
    """Refuse heads that are wider together than any matrix may be."""
    if num_heads * head_dim > MAX_SIZE:
        raise fields.error(
            field, f"{num_heads} heads of {head_dim} elements are more than {MAX_SIZE}"
        )


def dense_mlp(fields: Fields, **others: Any) -> MlpConfig:
    return MlpConfig(width=fields.integer("intermediate_size"), **others)


def num_experts(fields: Fields, *names: str) -> int:
    """The number of experts of a layer under the first of these names that is there."""
    name = next((name for name in names if fields.values.get(name) is not None), names[0])
    count = fields.integer(name, high=MAX_EXPERTS)
    if count * num_layers(fields) > MAX_ALL_EXPERTS:
        raise fields.error(name, f"{count} experts in every layer are more than can be handled")
    return count


def experts_per_token(fields: Fields, experts: int) -> int:
    count = fields.integer("num_experts_per_tok")
    if count > experts:
        raise fields.error("num_experts_per_tok", f"{count} is above {experts} experts")
    return count


def layer_types(fields: Fields, window: int, default: Sequence[bool]) -> list[int]:
    """The window of each layer, 0 for full attention: from `layer_types` if the file has it, else
    from `default` (whether the layer has the window)."""
    names = fields.items("layer_types")
    if names is None or not window:
        return [window if sliding else 0 for sliding in default]
    if len(names) != len(default):
        raise fields.error("layer_types", f"has {len(names)} entries for {len(default)} layers")
    for name in names:
        if name not in ("full_attention", "sliding_attention"):
            raise fields.error("layer_types", f"{name!r:.60} is not supported")
    return [window if name == "sliding_attention" else 0 for name in names]


def window_tokens(fields: Fields) -> int:
    """`sliding_window`, 0 if the file has none."""
    return fields.integer("sliding_window", 0, low=0, high=1 << 31)


def refuse_quantised(fields: Fields, supported: tuple[str, ...] = ()) -> str:
    """The quantisation of the weights if it is one of `supported`, "" if there is none."""
    section = fields.section("quantization_config")
    if not section.values:
        return ""
    method = section.values.get("quant_method")
    if method in supported:
        return str(method)
    remedy = "use a float32, float16 or bfloat16 checkpoint"
    if supported:
        remedy += f", or {' or '.join(supported)}"
    raise fields.error("quantization_config", f"{method!r:.40} is not supported", remedy)


def rope(fields: Fields, dim: int, theta: float = 10000.0) -> RopeConfig:
    """Rotary settings in both spellings: `rope_theta` and `rope_scaling` at top level (transformers
    4), and `rope_parameters` (5)."""
    merged = Fields(
        fields.path,
        fields.section("rope_scaling").values | fields.section("rope_parameters").values,
    )
    theta = merged.number("rope_theta", fields.number("rope_theta", theta))
    values = merged.values
    kind = values.get("rope_type", values.get("type", "default"))
    if merged.number("partial_rotary_factor", 1.0) != 1.0:
        raise fields.error("partial_rotary_factor", "only 1 is supported")
    if kind == "default":
        return RopeConfig(dim=dim, theta=theta)
    if kind == "linear":
        return RopeConfig(dim=dim, theta=theta, linear_factor=merged.number("factor"))
    if kind == "llama3":
        return RopeConfig(dim=dim, theta=theta, llama3=_llama3(merged))
    if kind == "yarn":
        if theta <= 1:
            raise fields.error("rope_theta", f"must be above 1 for yarn, got {theta}")
        return RopeConfig(dim=dim, theta=theta, yarn=_yarn(fields, merged))
    remedy = "supported: default, linear, llama3, yarn"
    raise fields.error("rope_type", f"{kind!r:.60} is not supported", remedy)


def _llama3(scaling: Fields) -> Llama3Scaling:
    llama3 = Llama3Scaling(
        factor=scaling.number("factor"),
        low_freq_factor=scaling.number("low_freq_factor"),
        high_freq_factor=scaling.number("high_freq_factor"),
        original_max_position=scaling.integer("original_max_position_embeddings", high=MAX_CONTEXT),
    )
    if llama3.high_freq_factor <= llama3.low_freq_factor:
        raise scaling.error("high_freq_factor", "must be above low_freq_factor")
    return llama3


def _yarn(fields: Fields, scaling: Fields) -> YarnScaling:
    context = fields.integer("max_position_embeddings", high=MAX_CONTEXT)
    original = scaling.integer("original_max_position_embeddings", context, high=MAX_CONTEXT)
    factor = scaling.number("factor", context / original)
    mscale, all_dim = (scaling.values.get(name) for name in ("mscale", "mscale_all_dim"))
    if mscale and all_dim:
        attention = yarn_gain(factor, scaling.number("mscale")) / yarn_gain(
            factor, scaling.number("mscale_all_dim")
        )
    else:
        attention = yarn_gain(factor, 1.0)
    return YarnScaling(
        factor=factor,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        original_max_position=original,
        truncate=scaling.flag("truncate", True),
        attention_factor=scaling.number("attention_factor", attention),
    )


def yarn_gain(factor: float, weight: float) -> float:
    """How much louder YaRN makes the products of a context that is stretched by `factor`."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def uniform(attention: AttentionConfig, mlps: Sequence[MlpConfig | MoeConfig]) -> list[LayerConfig]:
    """Layers with the same attention."""
    return [LayerConfig(attention=attention, mlp=mlp) for mlp in mlps]
