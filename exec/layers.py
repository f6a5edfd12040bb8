"""The small operations of a layer in plain torch: linear, RMS norm, rotary embedding, gated MLP.

Reference implementations, and the CPU path where `exec.compiled` has none. Norms, softmax and
rotary angles are float32 whatever the weights are. Shapes: T tokens, H hidden, D head_dim, E
experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from batchgen.exec import compiled
from batchgen.exec.config import RopeConfig
from batchgen.exec.exact import ROW_MULTIPLE, exact_linear, exact_silu

# Rows of an expert. Over torch with one and two threads (hidden 512, width 256): 16 rows 0.94 and
# 1.24 times as fast, 24 rows 0.89 and 1.14, 32 rows 0.86 and 1.05 (benchmarks/compiled.py
# --large-groups).
LARGE_GROUP = 24


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension, statistics in float32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    exact: bool = False,
) -> torch.Tensor:
    """x @ weight.T (+ bias). One door for every product, so that a mode can change them all."""
    return exact_linear(x, weight, bias) if exact else functional.linear(x, weight, bias)


def gated(gate_up: torch.Tensor, *, exact: bool = False) -> torch.Tensor:
    """silu(gate) * up, where the last dimension holds gate before up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (exact_silu(gate) if exact else functional.silu(gate)) * up


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


def rope_table(frequencies: torch.Tensor, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the angles of positions below `positions`, each [positions, 1, D / 2].

    A table, so that a token's angles cost a look-up and cannot depend on its batch.
    """
    angles = torch.arange(positions).float()[:, None, None] * frequencies
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
    exact: bool = False

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        inner = linear(x_TH, self.gate_up, self.gate_up_bias, exact=self.exact)
        return linear(gated(inner, exact=self.exact), self.down, self.down_bias, exact=self.exact)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMlp:
    """Routed experts: softmax in float32, top K, optional renormalisation, weighted sum.

    router [E, H], gate_up [E, 2I, H], down [E, H, I]. `compiled`: by `exec.compiled`, which does
    the same in both modes.
    """

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    experts_per_token: int
    norm_topk_prob: bool
    exact: bool = False
    compiled: bool = False

    def route(self, x_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and expert numbers, each [T, K]; ties go to the lower expert."""
        scores = linear(x_TH, self.router, exact=self.exact).float()
        probabilities = torch.softmax(scores, dim=-1)
        # A stable descending sort: topk leaves the order of equal experts open.
        sorted_TE, order_TE = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        weights = sorted_TE[:, : self.experts_per_token]
        if self.norm_topk_prob:
            weights = weights / _add_in_order(weights.unbind(-1))[:, None]
        return weights.to(x_TH.dtype), order_TE[:, : self.experts_per_token]

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        if self.compiled and not self._prefers_torch(x_TH):
            return compiled.sparse_mlp(
                x_TH,
                self.router,
                self.gate_up,
                self.down,
                self.experts_per_token,
                self.norm_topk_prob,
            )
        weights, experts = self.route(x_TH)
        assigned, order = experts.flatten().sort(stable=True)
        counts = torch.bincount(assigned, minlength=len(self.router))
        grouped = x_TH.index_select(0, order // self.experts_per_token)
        outputs = (self._padded if self.exact else self._grouped)(grouped, assigned, counts)
        parked = torch.empty_like(outputs).index_copy_(0, order, outputs)
        parked = parked.view(*experts.shape, -1) * weights[..., None]
        # One fixed order of addition per token, the order of its experts by weight.
        return _add_in_order(parked.unbind(1))

    def _prefers_torch(self, x_TH: torch.Tensor) -> bool:
        """Large groups of bfloat16: there the library's products are slower than torch's."""
        mean_group = len(x_TH) * self.experts_per_token / len(self.router)
        return x_TH.dtype == torch.bfloat16 and mean_group >= LARGE_GROUP

    def _grouped(
        self, x_SH: torch.Tensor, assigned: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Experts on their neighbouring rows; S = T * K rows sorted by expert."""
        if x_SH.dtype == torch.bfloat16:
            ends = counts.cumsum(0).to(torch.int32)
            inner = functional.grouped_mm(x_SH, self.gate_up.transpose(1, 2), offs=ends)
            return functional.grouped_mm(gated(inner), self.down.transpose(1, 2), offs=ends)
        return self._each(x_SH, counts.tolist())

    def _padded(
        self, x_SH: torch.Tensor, assigned: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Exact mode: every expert's group starts and ends at a multiple of ROW_MULTIPLE rows."""
        padded = (counts + (ROW_MULTIPLE - 1)) // ROW_MULTIPLE * ROW_MULTIPLE
        shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
        places = torch.arange(len(assigned), device=assigned.device) + shift[assigned]
        sizes = padded.tolist()
        wide = x_SH.new_zeros(sum(sizes), x_SH.shape[1]).index_copy_(0, places, x_SH)
        return self._each(wide, sizes).index_select(0, places)

    def _each(self, x_SH: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        outputs = []
        for expert, group in enumerate(x_SH.split(sizes)):
            if len(group):
                inner = functional.linear(group, self.gate_up[expert])
                inner = gated(inner, exact=self.exact)
                outputs.append(functional.linear(inner, self.down[expert]))
        return torch.cat(outputs)


def _add_in_order(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


Mlp = DenseMlp | SparseMlp
