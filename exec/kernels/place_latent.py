"""From the projections of latent attention to its pages, and its queries turned. Attends nothing.

*Idea.* Kept per token is one vector: its latent, normed, and behind it one rotary key. The rotary
parts of the queries of all heads are turned by the same angles. One launch does it all: of the
programs of a token, the first writes the kept vector into its page, the others each turn a tile of
heads. `out` of the queries may be a strided view, such as the last elements of queries whose first
are those that the projection to keys went into, so that nothing has to be concatenated.

Tokens of slot -1 are padding: their queries are zeros, and nothing of them is kept.

*Rounding* is that of `exec.latent`: after the norm, after its weight, after the rotation.

*Bytes.* Read and written are L + P + N P elements per token; beside them P angles in float32.
*FLOPs* some 6 per element. *Floor* on an H200 (4.3 TB/s copied): T = 8192, N = 128, L = 512 and
P = 64 in bfloat16 are 287 MB, 67 us; 256 decoding tokens 2 us.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work, config
from batchgen.exec.kernels.norms import rms_norm_reference
from batchgen.exec.kernels.place_qkv import places_reference, rotate_reference


def place_latent_reference(
    latent_TL: torch.Tensor,
    key_TP: torch.Tensor,
    q_TNP: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    tables: torch.Tensor,
    storage: torch.Tensor,
    layer: int,
) -> torch.Tensor:
    """As `place_latent`."""
    live, where, pages, offsets = places_reference(positions, slots, tables, storage.shape[4])
    if norm is not None:
        latent_TL = rms_norm_reference(latent_TL, norm, eps)
    key_TP = rotate_reference(key_TP[:, None], cos[where], sin[where])[:, 0]
    q_TNP = rotate_reference(q_TNP, cos[where], sin[where])
    storage[pages, layer, 0, 0, offsets] = torch.cat((latent_TL, key_TP), -1)[live]
    return torch.where(live[:, None, None], q_TNP, 0.0)


@triton.jit
def place_latent_kernel(
    latent: tl.tensor,
    key: tl.tensor,
    query: tl.tensor,
    norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    tables: tl.tensor,
    storage: tl.tensor,  # of the layer
    out: tl.tensor,
    latent_stride: tl.tensor,
    key_stride: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    out_stride: tl.tensor,
    out_head_stride: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    LATENT: tl.constexpr,
    ROTARY: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    LATENT_BLOCK: tl.constexpr,
    HALF: tl.constexpr,  # a power of two, at least ROTARY / 2
    TILE: tl.constexpr,  # heads per program
    NORMED: tl.constexpr,
) -> None:
    """Programs: tokens by one for what is kept and one per tile of heads."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    dtype: tl.constexpr = out.dtype.element_ty
    PAIRS: tl.constexpr = ROTARY // 2
    slot = tl.load(slots + token)
    live = slot >= 0
    position = tl.load(positions + token, mask=live, other=0)
    pair = tl.arange(0, HALF)
    inside = pair < PAIRS
    angle = position.to(tl.int64) * PAIRS + pair
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0)
    if part == 0:
        column = position // PAGE_TOKENS
        page = tl.load(tables + slot.to(tl.int64) * table_stride + column, mask=live, other=0)
        offset = position - column * PAGE_TOKENS
        to_page = storage + page.to(tl.int64) * page_stride + offset * (LATENT + ROTARY)
        at = tl.arange(0, LATENT_BLOCK)
        wanted = (at < LATENT) & live
        kept = tl.load(latent + token * latent_stride + at, mask=wanted, other=0.0).to(tl.float32)
        if NORMED:
            scale = tl.rsqrt(tl.sum(kept * kept, axis=0) / LATENT + eps)
            weight = tl.load(norm + at, mask=at < LATENT, other=0.0).to(tl.float32)
            kept = (kept * scale).to(dtype).to(tl.float32) * weight
        tl.store(to_page + at, kept.to(dtype), mask=wanted)
        from_key = key + token * key_stride + pair
        key_first = tl.load(from_key, mask=inside & live, other=0.0).to(tl.float32)
        key_second = tl.load(from_key + PAIRS, mask=inside & live, other=0.0).to(tl.float32)
        turned_first = (key_first * c - key_second * s).to(dtype)
        turned_second = (key_second * c + key_first * s).to(dtype)
        tl.store(to_page + LATENT + pair, turned_first, mask=inside & live)
        tl.store(to_page + LATENT + PAIRS + pair, turned_second, mask=inside & live)
    else:
        head = ((part - 1) * TILE + tl.arange(0, TILE))[:, None]
        mask = (head < HEADS) & inside[None, :]
        source = query + token * query_stride + head * query_head_stride + pair[None, :]
        first = tl.load(source, mask=mask & live, other=0.0).to(tl.float32)
        second = tl.load(source + PAIRS, mask=mask & live, other=0.0).to(tl.float32)
        cosines, sines = c[None, :], s[None, :]
        target = out + token * out_stride + head * out_head_stride + pair[None, :]
        tl.store(target, (first * cosines - second * sines).to(dtype), mask=mask)
        tl.store(target + PAIRS, (second * cosines + first * sines).to(dtype), mask=mask)


def place_latent(
    latent_TL: torch.Tensor,
    key_TP: torch.Tensor,
    q_TNP: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    tables: torch.Tensor,
    storage: torch.Tensor,
    layer: int,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The rotary parts of queries, turned, [T, N, P]; latents and turned keys go into `storage`
    [pages, layers, 1, 1, page_tokens, L + P].

    All three inputs may be strided but for their last dimension, and so may `out`. `norm`: the
    weight [L] of the latents' norm; None where they are normed. The others as in `place_qkv`.
    """
    page_tokens = storage.shape[4]
    if out is None:
        out = torch.empty(q_TNP.shape, dtype=q_TNP.dtype, device=q_TNP.device)
    if not len(latent_TL):
        return out
    heads, rank, rotary = q_TNP.shape[1], latent_TL.shape[1], key_TP.shape[1]
    assert latent_TL.stride(-1) == key_TP.stride(-1) == q_TNP.stride(-1) == out.stride(-1) == 1
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    sizes = _sizes(heads, rank, rotary)
    ours = storage[:, layer]
    place_latent_kernel[(len(latent_TL), 1 + triton.cdiv(heads, sizes["TILE"]))](
        latent_TL,
        key_TP,
        q_TNP,
        latent_TL if norm is None else norm,
        cos,
        sin,
        positions,
        slots,
        tables,
        ours,
        out,
        latent_TL.stride(0),
        key_TP.stride(0),
        q_TNP.stride(0),
        q_TNP.stride(1),
        tables.stride(0),
        ours.stride(0),
        out.stride(0),
        out.stride(1),
        eps,
        HEADS=heads,
        LATENT=rank,
        ROTARY=rotary,
        PAGE_TOKENS=page_tokens,
        NORMED=norm is not None,
        **sizes,
    )
    return out


def _sizes(heads: int, rank: int, rotary: int) -> dict[str, int]:
    """Tiles of 2048 elements of queries: sixteen per thread."""
    half = triton.next_power_of_2(rotary // 2)
    tile = min(max(1, 1024 // half), triton.next_power_of_2(heads))
    default = {"LATENT_BLOCK": triton.next_power_of_2(rank), "HALF": half, "TILE": tile}
    return config("place_latent", f"{rank}+{rotary}", {**default, "num_warps": 4})


def place_latent_work(num_tokens: int, heads: int, rank: int, rotary: int, itemsize: int) -> Work:
    elements = num_tokens * (rank + rotary + heads * rotary)
    angles = 4.0 * num_tokens * rotary
    return Work(flops=6.0 * elements, bytes=2.0 * elements * itemsize + angles)


def _ahead(name: str, heads: int, *, normed: bool, dtype: str = "bf16") -> AheadCase:
    sizes = _sizes(heads, 512, 64)
    warps = sizes.pop("num_warps")
    constants: dict[str, Any] = {"HEADS": heads, "LATENT": 512, "ROTARY": 64}
    constants |= {"PAGE_TOKENS": 16, "NORMED": normed, **sizes}
    signature = dict.fromkeys(("latent", "key", "query", "norm"), f"*{dtype}")
    signature |= {"cos": "*fp32", "sin": "*fp32"}
    signature |= dict.fromkeys(("positions", "slots", "tables"), "*i32")
    signature |= dict.fromkeys(("storage", "out"), f"*{dtype}")
    strides = ["latent_stride", "key_stride", "query_stride", "query_head_stride"]
    strides += ["table_stride", "page_stride", "out_stride", "out_head_stride"]
    signature |= {**dict.fromkeys(strides, "i32"), "eps": "fp32"}
    signature |= dict.fromkeys(constants, "constexpr")
    return AheadCase(
        name=f"place_latent_{name}",
        kernel=place_latent_kernel,
        signature=signature,
        constants=constants,
        num_warps=warps,
    )


AHEAD = (
    _ahead("128_heads", 128, normed=True),
    _ahead("16_heads", 16, normed=False),
    _ahead("float", 128, normed=True, dtype="fp32"),
)
