"""Routed experts: gate and up, SwiGLU, down, weights and the sum per token; chooses no experts.

Idea. Four launches. `group_rows` sorts the (token, expert) pairs by expert; two products (see
`expert_products`) take blocks of rows of one expert, the first with its gate, the second with the
weight of the pair; `combine_experts` adds the k rows of a token in a fixed order, where atomics
would add them in any. With a quarter as many pairs as experts or fewer, nothing is sorted: every
pair is a block of its own. `slots` says where an expert's weights lie, so that they may move
between calls, and under a graph. Large groups may take `experts_grouped` instead.

Bytes: the weights of the experts that are touched, 3 * H * I each, tokens, and per pair 2 * I
(stored, loaded) and 3 * H elements (stored, loaded by the sum, and the gather, from L2). FLOPs:
6 * T * k * H * I. Floors on an H200 (4.3 TB/s, 790 TFLOP/s) for E 128, k 8, H 2048, I 768: 256
tokens 1.21 GB of weights, 281 us; 16,384 tokens 1.24 TFLOP, 1.57 ms. Aims: 75 % and 50 % of that.

The rows per expert from which `experts_grouped` is better are a guess until they are measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from batchgen.exec.kernels.combine_experts import combine_experts
from batchgen.exec.kernels.expert_products import down_product, gate_up_product
from batchgen.exec.kernels.expert_tiles import GREATEST_BLOCK, tiles_of
from batchgen.exec.kernels.experts_grouped import activate_reference, experts_grouped
from batchgen.exec.kernels.group_rows import Groups, group_rows
from batchgen.exec.kernels.launching import Work, config


class ExpertSpace(NamedTuple):
    """What `experts` needs between its kernels: `inner` [T * k, I], `parts` [T * k, H]."""

    inner: torch.Tensor
    parts: torch.Tensor
    groups: Groups


def experts_reference(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in torch, one expert after the other, in the dtype of x."""
    num_tokens, k = chosen.shape
    owners = chosen.flatten().long()
    rows = x.repeat_interleave(k, 0)
    parts = torch.zeros(num_tokens * k, x.shape[1], dtype=x.dtype, device=x.device)
    for expert in owners.unique().tolist():
        slot = expert if slots is None else int(slots[expert])
        mine = owners == expert
        both = rows[mine] @ gate_up[slot].T
        if gate_up_bias is not None:
            both = both + gate_up_bias[expert]
        part = activate_reference(both, clamp) @ down[slot].T
        parts[mine] = part if down_bias is None else part + down_bias[expert]
    parts = parts.view(num_tokens, k, -1) * weights[..., None].to(x.dtype)
    total = torch.zeros_like(x)
    for i in range(k):
        total = total + parts[:, i]
    return total


def new_space(
    num_tokens: int,
    k: int,
    num_experts: int,
    hidden: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> ExpertSpace:
    """Space for calls of up to `num_tokens` tokens."""
    pairs = num_tokens * k
    places = pairs + min(pairs, num_experts) * (GREATEST_BLOCK - 1)
    sizes = (places, pairs, num_experts)
    return ExpertSpace(
        torch.empty(pairs, width, dtype=dtype, device=device),
        torch.empty(pairs, hidden, dtype=dtype, device=device),
        Groups(*(torch.empty(n, dtype=torch.int32, device=device) for n in sizes)),
    )


def experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    slots: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    scratch: ExpertSpace | None = None,
) -> torch.Tensor:
    """[T, H] of x [T, H] by the experts `chosen` [T, k] (int32, best first) times `weights` [T, k].

    gate_up [S, 2I, H] holds gate above up, down [S, H, I]; rows contiguous. Expert e lies in slot
    `slots[e]` (int32 [E], all different) of both, or in slot e. Biases [E, 2I] and [E, H] are by
    expert. `clamp`: (limit, alpha) of the clamped SwiGLU. `scratch` of `new_space`.
    """
    (num_tokens, hidden), k = x.shape, chosen.shape[1]
    width, num_pairs = down.shape[2], chosen.numel()
    num_experts = len(gate_up) if slots is None else len(slots)
    out = torch.empty(num_tokens, hidden, dtype=x.dtype, device=x.device) if out is None else out
    if num_tokens == 0:
        return out
    bias = {"gate_up_bias": gate_up_bias, "down_bias": down_bias}
    if x.is_cuda and x.dtype == torch.bfloat16:
        least = config("experts_grouped", f"h{hidden}-i{width}", {"MEAN_ROWS": 2048})["MEAN_ROWS"]
        if num_pairs >= least * num_experts:
            return experts_grouped(
                x, weights, chosen, gate_up, down, clamp=clamp, slots=slots, out=out, **bias
            )
    for part in (x, gate_up, down):
        assert part.stride(-1) == 1
    for dense in (weights, chosen, gate_up_bias, down_bias, slots):
        assert dense is None or dense.is_contiguous()
    if scratch is None:
        scratch = new_space(num_tokens, k, num_experts, hidden, width, x.dtype, x.device)
    assert len(scratch.inner) >= num_pairs
    inner, parts = scratch.inner[:num_pairs], scratch.parts[:num_pairs]
    tiles = tiles_of(num_pairs, num_experts, hidden, width, x.element_size())
    if tiles["SORTED"]:
        pairs, block_experts, _ = group_rows(
            chosen, num_experts, tiles["BLOCK_M"], out=scratch.groups
        )
    else:
        pairs = block_experts = chosen.view(-1)
    blocks = (pairs, block_experts)
    gate_up_product(x, gate_up, gate_up_bias, slots, blocks, clamp, tiles, k, inner)
    down_product(inner, down, down_bias, weights, slots, blocks, tiles, parts)
    return combine_experts(parts, k, out=out)


def experts_work(
    num_tokens: int, k: int, num_experts: int, hidden: int, width: int, element_size: int
) -> Work:
    """FLOPs of both products, and bytes of weights, tokens and what goes from kernel to kernel.
    Experts are touched as by chance: 1 - (1 - k / E) ** T of them."""
    pairs = num_tokens * k
    touched = num_experts * (1.0 - (1.0 - k / num_experts) ** num_tokens)
    elements = 3.0 * touched * hidden * width
    elements += 2.0 * num_tokens * hidden + 2.0 * pairs * width + 2.0 * pairs * hidden
    return Work(6.0 * pairs * hidden * width, elements * element_size)
