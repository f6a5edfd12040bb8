"""The Qwen3-MoE architecture in compact torch, for training on a CPU. No cache, no sampling.

Shapes: B sequences, S tokens each, T = B S tokens, H hidden, D head_dim, E experts, K experts per
token. Parameter names are those of the published checkpoints, experts stacked; `training.export`
unstacks them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import nn

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 264,
    "hidden_size": 128,
    "intermediate_size": 384,
    "moe_intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "torch_dtype": "bfloat16",
}
INIT_STD = 0.04


class RmsNorm(nn.Module):
    """RMS norm over the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, CONFIG["rms_norm_eps"])


class Attention(nn.Module):
    """Causal grouped-query attention with norms on queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        hidden, head_dim = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.heads, self.kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
        self.q_proj = nn.Linear(hidden, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, hidden, bias=False)
        self.q_norm, self.k_norm = RmsNorm(head_dim), RmsNorm(head_dim)

    def forward(self, x_BSH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        split = (*x_BSH.shape[:2], -1, CONFIG["head_dim"])
        q = self.q_norm(self.q_proj(x_BSH).view(split)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x_BSH).view(split)).transpose(1, 2)
        v = self.v_proj(x_BSH).view(split).transpose(1, 2)
        groups = self.heads // self.kv_heads
        attended = functional.scaled_dot_product_attention(
            rotate(q, cos, sin),
            rotate(k, cos, sin).repeat_interleave(groups, dim=1),
            v.repeat_interleave(groups, dim=1),
            is_causal=True,
        )
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Stacked expert weights: gate_up_proj [E, 2I, H] holds gate above up, down_proj [E, H, I]."""

    def __init__(self) -> None:
        super().__init__()
        experts, hidden = CONFIG["num_experts"], CONFIG["hidden_size"]
        inner = CONFIG["moe_intermediate_size"]
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))


class SparseMlp(nn.Module):
    """Routed experts. `balance` is the load-balancing loss of the last pass, 1 when all is even."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(CONFIG["hidden_size"], CONFIG["num_experts"], bias=False)
        self.experts = Experts()
        self.balance = torch.zeros(())
        self.counts = [0] * CONFIG["num_experts"]

    def forward(self, x_BSH: torch.Tensor) -> torch.Tensor:
        x_TH = x_BSH.flatten(0, 1)
        num_experts, chosen = CONFIG["num_experts"], CONFIG["num_experts_per_tok"]
        probabilities = self.gate(x_TH).softmax(-1)
        weights, experts = probabilities.topk(chosen, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        load = torch.bincount(flat, minlength=num_experts)
        self.counts = load.tolist()
        self.balance = num_experts * (load / len(flat) * probabilities.mean(0)).sum()
        grouped = x_TH.index_select(0, order // chosen)
        # unbind, not indexing: the gradient of an index would fill the whole stack per expert.
        gate_ups = self.experts.gate_up_proj.unbind()
        parts = zip(grouped.split(self.counts), gate_ups, strict=True)
        gate, up = torch.cat([group @ weight.T for group, weight in parts]).chunk(2, dim=-1)
        hidden = functional.silu(gate) * up
        downs = self.experts.down_proj.unbind()
        parts = zip(hidden.split(self.counts), downs, strict=True)
        outputs = [group @ weight.T for group, weight in parts]
        parked = torch.cat(outputs).index_select(0, order.argsort())
        mixed = (parked.view(*experts.shape, -1) * weights[..., None]).sum(1)
        return mixed.view(x_BSH.shape)


class Layer(nn.Module):
    """One pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(CONFIG["hidden_size"])
        self.self_attn = Attention()
        self.post_attention_layernorm = RmsNorm(CONFIG["hidden_size"])
        self.mlp = SparseMlp()

    def forward(self, x_BSH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x_BSH = x_BSH + self.self_attn(self.input_layernorm(x_BSH), cos, sin)
        return x_BSH + self.mlp(self.post_attention_layernorm(x_BSH))


class SumsModel(nn.Module):
    """The whole model; `forward` gives logits [number of wanted tokens, vocabulary]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        hidden, vocabulary = CONFIG["hidden_size"], CONFIG["vocab_size"]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocabulary, hidden),
                "layers": nn.ModuleList([Layer() for _ in range(CONFIG["num_hidden_layers"])]),
                "norm": RmsNorm(hidden),
            }
        )
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                std = 1.0 if "embed_tokens" in name else INIT_STD
                nn.init.normal_(parameter, std=std, generator=generator)
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.cos, self.sin = rope_table()

    def forward(self, ids_BS: torch.Tensor, wanted_BS: torch.Tensor) -> torch.Tensor:
        """`wanted_BS` is a mask: the head is applied to those tokens alone."""
        x_BSH = self.model["embed_tokens"](ids_BS)
        cos, sin = self.cos[: ids_BS.shape[1]], self.sin[: ids_BS.shape[1]]
        for layer in self.model["layers"]:
            x_BSH = layer(x_BSH, cos, sin)
        return self.lm_head(self.model["norm"](x_BSH[wanted_BS]))

    def balance(self) -> torch.Tensor:
        """Load-balancing loss of the last pass, mean over layers; 1 when all experts are even."""
        return torch.stack([layer.mlp.balance for layer in self.model["layers"]]).mean()


def rope_table() -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [context, D / 2] of every position."""
    head_dim = CONFIG["head_dim"]
    frequencies = CONFIG["rope_theta"] ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.arange(CONFIG["max_position_embeddings"]).float()[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BNSD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + D/2) of each head by the angle of its position."""
    first, second = x_BNSD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
