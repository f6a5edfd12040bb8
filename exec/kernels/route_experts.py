"""Router logits become the experts of each token and their weights; computes no logits.

Idea. A token has E logits, at most 512, which fit into the registers of one warp. Every score
becomes a 64-bit key: above, the bits of the score in an order that integers keep; below, the
number of the expert, reversed. Keys are all different, and the largest is the best expert, the
lower one where scores tie. So k maxima in turn give the experts, best first, and what is taken
gets the least key of all. Groups of experts (DeepSeek) are chosen in the same way, by keys of
their merits, before the experts are.

Two cases differ. Where ranks are the scores themselves, the score comes out of the key. Where
a learned correction or groups change ranks, it is picked from the scores by its number. Where
bfloat16 logits alone decide, `route_short` does the same with shorter keys.

Bytes: T * E logits are read, T * k weights and numbers written. FLOPs do not count. Floor at 4.3
TB/s: 16,384 tokens of 128 float32 experts, top 8: 9.4 MB, 2.2 us; 256 tokens: the launch.
"""

# Parameters of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work, config
from batchgen.exec.kernels.route_short import columns_of, default_tile, route_short_kernel

SCORES = {"softmax": 0, "sigmoid": 1, "chosen-softmax": 2}


def route_experts_reference(
    logits: torch.Tensor,
    *,
    k: int,
    score: str = "softmax",
    normalise: bool = True,
    scaling: float = 1.0,
    correction: torch.Tensor | None = None,
    groups: int = 1,
    groups_kept: int = 1,
    group_top: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in torch, in float32."""
    logits = logits.float()
    scores = logits
    if score != "chosen-softmax":
        scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    ranks = scores if correction is None else scores + correction.float()
    if groups_kept < groups:
        by_group = ranks.view(len(ranks), groups, -1)
        best = by_group.sort(dim=-1, descending=True, stable=True).values[..., :group_top]
        order = _total(best).sort(dim=-1, descending=True, stable=True).indices
        dropped = torch.ones(len(ranks), groups, dtype=torch.bool, device=ranks.device)
        dropped.scatter_(1, order[:, :groups_kept], False)
        ranks = by_group.masked_fill(dropped[..., None], -torch.inf).flatten(1)
    chosen = ranks.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    weights = scores.gather(1, chosen)
    if score == "chosen-softmax":
        weights = weights.softmax(-1)
    elif normalise:
        weights = weights / (_total(weights) + (1e-20 if score == "sigmoid" else 0.0))[:, None]
    return (weights * scaling).to(dtype), chosen.to(torch.int32)


def _total(parts: torch.Tensor) -> torch.Tensor:
    total = parts[..., 0]
    for i in range(1, parts.shape[-1]):
        total = total + parts[..., i]
    return total


@triton.jit
def _keys(x, number, last: tl.constexpr):
    """64-bit keys in the order of float32 `x`, then of the lower `number` of at most `last`."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # one zero, not two
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (last - number).to(tl.int64)


@triton.jit
def _number_of(key, last: tl.constexpr):
    return last - (key & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _value_of(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["num_tokens"])
def _route(
    logits,
    correction,
    weights,
    experts,
    num_tokens,
    scaling,
    LOGITS_STRIDE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PADDED: tl.constexpr,
    SCORE: tl.constexpr,  # a value of SCORES
    NORMALISE: tl.constexpr,
    HAS_CORRECTION: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PADDED: tl.constexpr,
    GROUPS_KEPT: tl.constexpr,
    GROUP_TOP: tl.constexpr,
    MEMBERS: tl.constexpr,  # experts of a group
    MEMBERS_PADDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    COLUMNS: tl.constexpr = GROUPS_PADDED * MEMBERS_PADDED
    LEAST: tl.constexpr = -(1 << 63)
    LIMITED: tl.constexpr = GROUPS_KEPT < GROUPS
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, COLUMNS)
    group = column // MEMBERS_PADDED
    member = column % MEMBERS_PADDED
    real = ((group < GROUPS) & (member < MEMBERS))[None, :]
    expert = group * MEMBERS + member
    live = token < num_tokens
    places = token.to(tl.int64)[:, None] * LOGITS_STRIDE + expert[None, :]
    x = tl.load(logits + places, mask=live[:, None] & real, other=0.0).to(tl.float32)

    scores = x
    if SCORE == 0:
        top = tl.max(tl.where(real, x, float("-inf")), 1)
        powers = tl.where(real, tl.exp(x - top[:, None]), 0.0)
        scores = powers / tl.sum(powers, 1)[:, None]
    elif SCORE == 1:  # as torch does, so that what it calls zero is zero here
        scores = 1.0 / (1.0 + tl.exp(-x))
    ranks = scores
    if HAS_CORRECTION:
        shift = tl.load(correction + expert, mask=(group < GROUPS) & (member < MEMBERS), other=0.0)
        ranks = scores + shift.to(tl.float32)[None, :]
    numbers = tl.broadcast_to(column[None, :], [BLOCK_T, COLUMNS])

    if LIMITED:
        shape: tl.constexpr = [BLOCK_T, GROUPS_PADDED, MEMBERS_PADDED]
        inside = tl.reshape(tl.where(real, _keys(ranks, numbers, COLUMNS - 1), LEAST), shape)
        merit = tl.zeros([BLOCK_T, GROUPS_PADDED], tl.float32)
        for _ in tl.static_range(GROUP_TOP):
            best = tl.max(inside, 2)
            merit += _value_of(best)
            inside = tl.where(inside == best[:, :, None], LEAST, inside)
        number = tl.arange(0, GROUPS_PADDED)[None, :]
        number = tl.broadcast_to(number, [BLOCK_T, GROUPS_PADDED])
        left = tl.where(number < GROUPS, _keys(merit, number, GROUPS_PADDED - 1), LEAST)
        kept = tl.zeros([BLOCK_T, GROUPS_PADDED], tl.int32)
        for _ in tl.static_range(GROUPS_KEPT):
            taken = left == tl.max(left, 1)[:, None]
            kept = tl.where(taken, 1, kept)
            left = tl.where(taken, LEAST, left)
        kept_inside = tl.reshape(tl.broadcast_to(kept[:, :, None], shape), [BLOCK_T, COLUMNS])
        ranks = tl.where(kept_inside != 0, ranks, float("-inf"))

    keys = tl.where(real, _keys(ranks, numbers, COLUMNS - 1), LEAST)
    place = tl.arange(0, TOP_K_PADDED)[None, :]
    chosen = tl.zeros([BLOCK_T, TOP_K_PADDED], tl.int32)
    weight = tl.full([BLOCK_T, TOP_K_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    for i in tl.static_range(TOP_K):
        best = tl.max(keys, 1)
        number = _number_of(best, COLUMNS - 1)
        if HAS_CORRECTION or LIMITED:
            value = tl.sum(tl.where(numbers == number[:, None], scores, 0.0), 1)
        else:
            value = _value_of(best)
        real_number = number // MEMBERS_PADDED * MEMBERS + number % MEMBERS_PADDED
        chosen = tl.where(place == i, real_number[:, None], chosen)
        weight = tl.where(place == i, value[:, None], weight)
        total += value  # best first, as the reference adds
        keys = tl.where(keys == best[:, None], LEAST, keys)

    if SCORE == 2:
        weight = tl.exp(weight - tl.max(weight, 1)[:, None])
        weight = weight / tl.sum(weight, 1)[:, None]
    elif NORMALISE:
        # Sigmoids may all be zero; those of a softmax that were chosen are not.
        weight = weight / (total + 1e-20 if SCORE == 1 else total)[:, None]
    to = token.to(tl.int64)[:, None] * TOP_K + place
    mask = live[:, None] & (place < TOP_K)
    tl.store(weights + to, (weight * scaling).to(weights.dtype.element_ty), mask=mask)
    tl.store(experts + to, chosen, mask=mask)


def route_experts(
    logits: torch.Tensor,
    *,
    k: int,
    score: str = "softmax",
    normalise: bool = True,
    scaling: float = 1.0,
    correction: torch.Tensor | None = None,
    groups: int = 1,
    groups_kept: int = 1,
    group_top: int = 1,
    dtype: torch.dtype = torch.float32,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights in `dtype` (or that of `out`) and int32 expert numbers, each [T, k], the best expert
    first, of logits [T, E] with contiguous rows; arguments as in `exec.config.RoutingConfig`."""
    num_tokens, num_experts = logits.shape
    if out is None:
        out = (
            torch.empty(num_tokens, k, dtype=dtype, device=logits.device),
            torch.empty(num_tokens, k, dtype=torch.int32, device=logits.device),
        )
    weights, experts = out
    assert logits.stride(1) == 1
    assert weights.is_contiguous()
    assert experts.is_contiguous()
    assert k <= num_experts
    assert num_experts % groups == 0
    if num_tokens == 0:
        return out
    plain = correction is None and groups_kept >= groups and score != "sigmoid"
    if plain and logits.dtype == torch.bfloat16:
        columns = columns_of(num_experts, k)
        tile = config("route_short", f"columns{columns}", default_tile(columns))
        route_short_kernel[(triton.cdiv(num_tokens, tile["BLOCK_T"]),)](
            logits,
            weights,
            experts,
            num_tokens,
            scaling,
            LOGITS_STRIDE=logits.stride(0),
            EXPERTS=num_experts,
            COLUMNS=columns,
            TOP_K=k,
            SOFTMAX=score == "softmax",
            NORMALISE=normalise,
            BLOCK_T=tile["BLOCK_T"],
            num_warps=tile["WARPS"],
        )
        return out
    shape = _shape(num_experts, groups if groups_kept < groups else 1)
    columns = shape["GROUPS_PADDED"] * shape["MEMBERS_PADDED"]
    tile = config("route_experts", f"columns{columns}", _tile(columns))
    _route[(triton.cdiv(num_tokens, tile["BLOCK_T"]),)](
        logits,
        correction,
        weights,
        experts,
        num_tokens,
        scaling,
        LOGITS_STRIDE=logits.stride(0),
        TOP_K=k,
        TOP_K_PADDED=triton.next_power_of_2(k),
        SCORE=SCORES[score],
        NORMALISE=normalise,
        HAS_CORRECTION=correction is not None,
        GROUPS_KEPT=min(groups_kept, shape["GROUPS"]),
        GROUP_TOP=group_top,
        **shape,
        BLOCK_T=tile["BLOCK_T"],
        num_warps=tile["WARPS"],
    )
    return out


def _shape(num_experts: int, groups: int) -> dict[str, int]:
    members = num_experts // groups
    return {
        "GROUPS": groups,
        "GROUPS_PADDED": triton.next_power_of_2(groups),
        "MEMBERS": members,
        "MEMBERS_PADDED": triton.next_power_of_2(members),
    }


def _tile(columns: int) -> dict[str, int]:
    """A row never leaves its warp: four warps of up to 128 columns, else one warp."""
    if columns > 128:
        return {"BLOCK_T": 1, "WARPS": 1}
    return {"BLOCK_T": min(512 // columns, 16), "WARPS": 4 if columns >= 32 else 1}


def route_experts_work(logits: torch.Tensor, k: int) -> Work:
    """Bytes of the logits, and of float32 weights and int32 numbers."""
    return Work(0.0, logits.numel() * logits.element_size() + len(logits) * k * 8)


def _ahead(
    name: str, logits: str, num_experts: int, k: int, score: str, groups: tuple[int, int, int]
) -> AheadCase:
    shape = _shape(num_experts, groups[0])
    tile = _tile(shape["GROUPS_PADDED"] * shape["MEMBERS_PADDED"])
    corrected = score == "sigmoid"
    constants: dict[str, Any] = {
        "LOGITS_STRIDE": num_experts,
        "TOP_K": k,
        "TOP_K_PADDED": triton.next_power_of_2(k),
        "SCORE": SCORES[score],
        "NORMALISE": True,
        "HAS_CORRECTION": corrected,
        "GROUPS_KEPT": groups[1],
        "GROUP_TOP": groups[2],
        **shape,
        "BLOCK_T": tile["BLOCK_T"],
    }
    if not corrected:
        constants["correction"] = None
    signature = {
        "logits": logits,
        "correction": "*fp32" if corrected else "constexpr",
        "weights": "*fp32",
        "experts": "*i32",
        "num_tokens": "i32",
        "scaling": "fp32",
        **{key: "constexpr" for key in constants if key != "correction"},
    }
    return AheadCase(
        name=name,
        kernel=_route,
        signature=signature,
        constants=constants,
        num_warps=tile["WARPS"],
    )


AHEAD = (
    _ahead("E128 k8", "*fp32", 128, 8, "softmax", (1, 1, 1)),
    _ahead("E8 k2", "*fp32", 8, 2, "softmax", (1, 1, 1)),
    _ahead("E32 k4 of the chosen", "*fp32", 32, 4, "chosen-softmax", (1, 1, 1)),
    _ahead("E160 k6 in groups", "*fp32", 160, 6, "softmax", (8, 3, 1)),
    _ahead("E256 k8 in groups", "*fp32", 256, 8, "sigmoid", (8, 4, 2)),
    _ahead("E512 k10", "*fp32", 512, 10, "softmax", (1, 1, 1)),
)
