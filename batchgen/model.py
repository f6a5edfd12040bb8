"""What a model costs: parameters, FLOPs, weight and KV bytes per module. It loads no weights.

A `ModelSpec` comes from the `config.json` of a Hugging Face folder or from the catalog by name
(`load_model`). Formulas: the usual ones per layer, 2 FLOPs per multiply-add; norms, biases and
sinks count as parameters and never as FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Literal

AttentionKind = Literal["mha", "gqa", "mla"]

# Bytes per parameter, block scales included. fp8: one float32 scale per 128x128 block (DeepSeek-V3
# report, section 3.3.2). mxfp4: one 8-bit scale per 32 values (OCP MX 1.0, section 5.1). int4: one
# 16-bit scale per group of 128 (the AWQ and GPTQ default).
DTYPE_BYTES: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0 + 4.0 / (128 * 128),
    "int8": 1.0,
    "mxfp4": 0.5 + 1.0 / 32,
    "nvfp4": 0.5 + 1.0 / 16,
    "int4": 0.5 + 2.0 / 128,
}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A transformer decoder by its numbers. Sizes are counts of parameters unless named otherwise.

    `ffn` is the width of the dense FFN (of the first `first_k_dense` layers when the model has
    experts), `expert_ffn` that of one routed expert, `shared_ffn` that of all shared experts
    together. `window_layers` layers read only the last `window` tokens. dtypes are keys of
    `DTYPE_BYTES`. `routed_groups` bounds the number of expert groups a token may use (0: no bound).
    `qk_norm_joint`: queries and keys are normed over all heads together, not head by head.
    """

    name: str
    family: str
    num_layers: int
    hidden: int
    attention: AttentionKind
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_context: int
    tied: bool = False
    gated: bool = True
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    v_dim: int = 0
    window: int = 0
    window_layers: int = 0
    num_experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    num_shared: int = 0
    first_k_dense: int = 0
    routed_groups: int = 0
    router_bias: bool = False
    expert_bias: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    attention_sinks: bool = False
    qk_norm: bool = False
    qk_norm_joint: bool = False
    weight_dtype: str = "bf16"
    expert_dtype: str = "bf16"
    embedding_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    published_parameters: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("num_layers", "hidden", "num_heads", "num_kv_heads", "head_dim", "vocab"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} must be at least 1, got {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads ({self.num_heads}) must be a multiple of "
                f"num_kv_heads ({self.num_kv_heads})"
            )
        if self.num_experts and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"model.top_k must lie in 1..num_experts ({self.num_experts}), got {self.top_k}"
            )
        for field in ("weight_dtype", "expert_dtype", "embedding_dtype", "kv_dtype"):
            if getattr(self, field) not in DTYPE_BYTES:
                known = ", ".join(DTYPE_BYTES)
                raise ValueError(
                    f"model.{field} must be one of {known}, got {getattr(self, field)!r}"
                )

    # Layers ------------------------------------------------------------------------------------

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def kind(self) -> str:
        """ "latent", "moe" or "dense": what its kernels are."""
        return "latent" if self.attention == "mla" else "moe" if self.is_moe else "dense"

    @property
    def moe_layers(self) -> int:
        return self.num_layers - self.first_k_dense if self.is_moe else 0

    @property
    def dense_layers(self) -> int:
        return self.num_layers - self.moe_layers

    @property
    def full_layers(self) -> int:
        """Layers whose KV grows with every token; all of them if every layer is windowed."""
        if self.window_layers >= self.num_layers:
            return self.num_layers
        return self.num_layers - self.window_layers

    # Parameters of one module ------------------------------------------------------------------

    @cached_property
    def attention_matmul_parameters(self) -> int:
        """Weights of the projections of one attention layer."""
        d, n = self.hidden, self.num_heads
        if self.attention == "mla":
            qk = self.nope_dim + self.rope_dim
            query = (
                d * self.q_lora_rank + self.q_lora_rank * n * qk if self.q_lora_rank else d * n * qk
            )
            down = d * (self.kv_lora_rank + self.rope_dim)
            up = self.kv_lora_rank * n * (self.nope_dim + self.v_dim)
            return query + down + up + n * self.v_dim * d
        return d * self.head_dim * (2 * n + 2 * self.num_kv_heads)

    @cached_property
    def attention_replicated_parameters(self) -> int:
        """The part of `attention_matmul_parameters` that tensor parallelism cannot split (MLA)."""
        if self.attention != "mla":
            return 0
        return self.hidden * (self.q_lora_rank + self.kv_lora_rank + self.rope_dim)

    @cached_property
    def attention_parameters(self) -> int:
        """One attention layer with its biases, sinks, inner norms and the two layer norms."""
        extra = 2 * self.hidden
        if self.attention == "mla":
            extra += self.q_lora_rank + self.kv_lora_rank
        if self.attention_bias:
            extra += (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        if self.output_bias:
            extra += self.hidden
        if self.qk_norm_joint:
            extra += (self.num_heads + self.num_kv_heads) * self.head_dim
        elif self.qk_norm:
            extra += 2 * self.head_dim
        if self.attention_sinks:
            extra += self.num_heads
        return self.attention_matmul_parameters + extra

    @cached_property
    def ffn_parameters(self) -> int:
        """One dense FFN."""
        return (3 if self.gated else 2) * self.hidden * self.ffn

    @cached_property
    def expert_matmul_parameters(self) -> int:
        return (3 if self.gated else 2) * self.hidden * self.expert_ffn

    @cached_property
    def expert_parameters(self) -> int:
        """One routed expert."""
        bias = 0
        if self.expert_bias:
            bias = (2 if self.gated else 1) * self.expert_ffn + self.hidden
        return self.expert_matmul_parameters + bias

    @cached_property
    def shared_parameters(self) -> int:
        """All shared experts of one MoE layer."""
        return (3 if self.gated else 2) * self.hidden * self.shared_ffn

    @cached_property
    def router_parameters(self) -> int:
        bias = self.num_experts if self.router_bias else 0
        return self.hidden * self.num_experts + bias

    @cached_property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @cached_property
    def head_parameters(self) -> int:
        """Parameters stored for the LM head beside the embedding (0 when tied)."""
        return 0 if self.tied else self.embedding_parameters

    # Totals ------------------------------------------------------------------------------------

    def parameters_by_module(self) -> dict[str, int]:
        """Parameters of the whole model per kind of module."""
        return {
            "attention": self.num_layers * self.attention_parameters,
            "dense_ffn": self.dense_layers * self.ffn_parameters,
            "experts": self.moe_layers * self.num_experts * self.expert_parameters,
            "shared_experts": self.moe_layers * self.shared_parameters,
            "router": self.moe_layers * self.router_parameters,
            "embedding": self.embedding_parameters,
            "lm_head": self.head_parameters,
            "final_norm": self.hidden,
        }

    @cached_property
    def total_parameters(self) -> int:
        return sum(self.parameters_by_module().values())

    @cached_property
    def active_parameters(self) -> int:
        """Parameters a token uses, the embedding included."""
        idle = self.moe_layers * (self.num_experts - self.top_k) * self.expert_parameters
        return self.total_parameters - idle

    def flops_per_token(self) -> dict[str, int]:
        """FLOPs of the linear layers per token and module of the whole model.

        Attention scores are not in it (they depend on the context); the LM head is counted as for
        a token that needs logits.
        """
        return {
            "attention": 2 * self.num_layers * self.attention_matmul_parameters,
            "dense_ffn": 2 * self.dense_layers * self.ffn_parameters,
            "experts": 2 * self.moe_layers * self.top_k * self.expert_matmul_parameters,
            "shared_experts": 2 * self.moe_layers * self.shared_parameters,
            "router": 2 * self.moe_layers * self.hidden * self.num_experts,
            "lm_head": 2 * self.embedding_parameters,
        }

    def weight_bytes_by_module(self) -> dict[str, int]:
        """Bytes of the weights per kind of module, block scales included."""
        dtype = {
            "attention": self.weight_dtype,
            "dense_ffn": self.weight_dtype,
            "experts": self.expert_dtype,
            "shared_experts": self.weight_dtype,
        }
        return {
            name: ceil(count * DTYPE_BYTES[dtype.get(name, self.embedding_dtype)])
            for name, count in self.parameters_by_module().items()
        }

    @cached_property
    def weight_bytes(self) -> int:
        return sum(self.weight_bytes_by_module().values())

    # Attention scores and KV -------------------------------------------------------------------

    @cached_property
    def kv_values_per_layer(self) -> int:
        """Numbers kept per token and layer."""
        if self.attention == "mla":
            return self.kv_lora_rank + self.rope_dim
        return 2 * self.num_kv_heads * self.head_dim

    @cached_property
    def kv_bytes_per_token_layer(self) -> int:
        return ceil(self.kv_values_per_layer * DTYPE_BYTES[self.kv_dtype])

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Growth of the KV cache per token, beyond the window of the windowed layers."""
        return self.full_layers * self.kv_bytes_per_token_layer

    @cached_property
    def kv_window_bytes(self) -> int:
        """What the windowed layers of one row hold at most."""
        windowed = self.num_layers - self.full_layers
        return windowed * self.window * self.kv_bytes_per_token_layer

    def kv_bytes(self, tokens: int) -> int:
        """KV bytes of one row of `tokens` tokens, full and windowed layers."""
        windowed = (self.num_layers - self.full_layers) * min(tokens, self.window)
        return (self.full_layers * tokens + windowed) * self.kv_bytes_per_token_layer

    @cached_property
    def decode_flops_per_context_token(self) -> int:
        """Score FLOPs of one decoding row and one layer per KV token (MLA: absorbed form)."""
        if self.attention == "mla":
            return 2 * self.num_heads * (2 * self.kv_lora_rank + self.rope_dim)
        return 4 * self.num_heads * self.head_dim

    @cached_property
    def prefill_flops_per_pair(self) -> int:
        """Score FLOPs of one layer per unit of (start + length)^2 - start^2 (MLA: expanded)."""
        if self.attention == "mla":
            return self.num_heads * (self.nope_dim + self.rope_dim + self.v_dim)
        return 2 * self.num_heads * self.head_dim

    @cached_property
    def prefill_flops_per_read(self) -> int:
        """FLOPs of one layer per earlier KV token of a chunk (MLA expands the latent again)."""
        if self.attention == "mla":
            return 2 * self.kv_lora_rank * self.num_heads * (self.nope_dim + self.v_dim)
        return 0


def load_model(name_or_path: str | Path) -> ModelSpec:
    """A model by catalog name (any case, aliases) or from a folder with `config.json`.

    Raises UserError for an unknown name (with the closest names) and DataError for a config that
    lacks a field or is of a family that is not supported.
    """
    from batchgen.catalog.loader import find_model

    return find_model(name_or_path)


def model_names() -> list[str]:
    """Names of the catalog, in its order."""
    from batchgen.catalog.loader import catalog_model_names

    return catalog_model_names()
