"""The small operations of a layer in plain torch: linear, RMS norm, rotary embedding, gated MLP.

Reference implementations and the CPU path. Norms, softmax and rotary angles are float32 whatever
the weights are. Shapes: T tokens, H hidden, D head_dim, E experts, K experts per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from batchgen.exec.config import RopeConfig


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension, statistics in float32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T (+ bias). One door for every product, so that a mode can change them all."""
    return functional.linear(x, weight, bias)


def rope_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Angular frequencies [head_dim / 2] in float32, with the model's long-context scaling."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponent)
    frequencies = frequencies / rope.linear_factor
    if rope.llama3 is None:
        return frequencies
    scaling = rope.llama3
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1.0 - keep) * frequencies / scaling.factor + keep * frequencies


def rope_angles(
    frequencies: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every token's angles, each [T, 1, D / 2] in float32."""
    angles = positions.float()[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x_THD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + D/2) of each head, the Hugging Face convention."""
    first, second = x_THD.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_THD.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlp:
    """Gated SiLU MLP. gate_up [2I, H] holds gate above up; down [H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        gate, up = linear(x_TH, self.gate_up, self.gate_up_bias).chunk(2, dim=-1)
        return linear(functional.silu(gate) * up, self.down, self.down_bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMlp:
    """Routed experts: softmax in float32, top K, optional renormalisation, weighted sum.

    router [E, H], gate_up [E, 2I, H], down [E, H, I].
    """

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    experts_per_token: int
    norm_topk_prob: bool

    def route(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and expert numbers, each [T, K]; ties go to the lower expert."""
        probabilities = torch.softmax(linear(x_TH, self.router).float(), dim=-1)
        # A stable descending sort: topk leaves the order of equal experts open.
        sorted_TE, order_TE = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        weights, experts = (
            sorted_TE[:, : self.experts_per_token],
            order_TE[:, : self.experts_per_token],
        )
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x_TH.dtype), experts

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        weights, experts = self.route(x_TH)
        order = experts.flatten().argsort(stable=True)
        grouped = x_TH.index_select(0, order // self.experts_per_token)
        counts = torch.bincount(experts.flatten(), minlength=len(self.router)).tolist()
        outputs = []
        for expert, group in enumerate(grouped.split(counts)):
            if len(group):
                gate, up = linear(group, self.gate_up[expert]).chunk(2, dim=-1)
                outputs.append(linear(functional.silu(gate) * up, self.down[expert]))
        parked = torch.empty_like(grouped)
        parked[order] = torch.cat(outputs)
        parked = parked.view(*experts.shape, -1)
        # One fixed order of addition per token, the order of its experts by weight.
        return (parked * weights[..., None]).sum(1)


Mlp = DenseMlp | SparseMlp
