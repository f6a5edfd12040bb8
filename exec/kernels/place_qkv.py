"""From projections to attention: norms of heads, rotation, and KV into its pages. Attends nothing.

*Idea.* Between the projection and attention stand up to eight small operations of torch: two norms,
two rotations, two indexed writes and the copies among them. All of them concern one head of one
token, so one launch does them: a program takes a token and a tile of its heads, queries before keys
before values, holds the two halves of each head as two tiles (they are the pairs of the rotation),
and sends queries to `out` and the rest to their page. Where that is follows from the token's slot
and position alone: `tables[slot, position // page_tokens]`, so the host prepares no addresses.

*What bounds it.* Beside 32 bytes of heads a thread needs 64 of angles and 32 of the weights of each
norm, from L1. With one head per thread those are most of what it reads, so a thread holds several;
a tile without queries or keys reads no weights for them. Heads are read before it is known whether
the token is padding.

Tokens of slot -1 pad a pass to the size of a CUDA graph: their queries are zeros, and nothing of
them is kept.

*Rounding* is that of `exec.layers` and `exec.rotary`: after the norm, after its weight, after the
rotation, each to the dtype; between these in float32.

*Bytes.* (N + 2 V) D elements read and as many written per token, and D cosines and sines in
float32, which its programs share. *FLOPs* some 10 per element. *Floor* on an H200 (4.3 TB/s
copied): T = 8192, N = 32, V = 8, D = 128 in bfloat16 are 201 MB and 4 MB of angles, 48 us; a
decoding batch of 256 tokens 1.5 us, less than a launch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work, config
from batchgen.exec.kernels.norms import rms_norm_reference

Norms = tuple[torch.Tensor, torch.Tensor]


def place_qkv_reference(
    qkv: torch.Tensor,
    norms: Norms | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    tables: torch.Tensor,
    storage: torch.Tensor,
    layer: int,
) -> torch.Tensor:
    """As `place_qkv`."""
    kv_heads, page_tokens, head_dim = storage.shape[3:]
    qkv = qkv.reshape(len(qkv), -1, head_dim)
    q, k, v = qkv.split((qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
    if norms is not None:
        q, k = rms_norm_reference(q, norms[0], eps), rms_norm_reference(k, norms[1], eps)
    live, where, pages, offsets = places_reference(positions, slots, tables, page_tokens)
    q, k = (rotate_reference(x, cos[where], sin[where]) for x in (q, k))
    storage[pages, layer, 0, :, offsets] = k[live]
    storage[pages, layer, 1, :, offsets] = v[live]
    return torch.where(live[:, None, None], q, 0.0)


def places_reference(
    positions: torch.Tensor, slots: torch.Tensor, tables: torch.Tensor, page_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which tokens are no padding [T] and their positions (0 for padding); of the live ones, the
    pages and the offsets in them."""
    live = slots >= 0
    where = torch.where(live, positions, 0).long()
    pages = tables[slots[live].long(), where[live] // page_tokens].long()
    return live, where, pages, where[live] % page_tokens


def rotate_reference(x_THD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs (i, i + D/2) of heads turned by angles whose cosines and sines are [T, D/2]."""
    first, second = x_THD.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x_THD.dtype)


@triton.jit
def place_qkv_kernel(
    qkv: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    tables: tl.tensor,
    storage: tl.tensor,  # of the layer
    out: tl.tensor,
    qkv_stride: tl.tensor,
    table_stride: tl.tensor,
    page_stride: tl.tensor,
    part_stride: tl.tensor,
    out_stride: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,  # N
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TILE: tl.constexpr,  # heads per program
    HALF: tl.constexpr,  # a power of two, at least HEAD_DIM / 2
    NORMED: tl.constexpr,
) -> None:
    """Programs: tokens, each with all its tiles of heads one after another."""
    TILES: tl.constexpr = (HEADS + 2 * KV_HEADS + TILE - 1) // TILE
    token = (tl.program_id(0) // TILES).to(tl.int64)
    lowest = tl.program_id(0) % TILES * TILE
    head = lowest + tl.arange(0, TILE)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    PAIRS: tl.constexpr = HEAD_DIM // 2
    inside = pair < PAIRS
    mask = (head < HEADS + 2 * KV_HEADS) & inside
    source = qkv + token * qkv_stride + head * HEAD_DIM + pair
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + PAIRS, mask=mask, other=0.0).to(tl.float32)
    slot = tl.load(slots + token)
    position = tl.load(positions + token)
    live = slot >= 0
    position = tl.where(live, position, 0)  # that of padding may be any
    mask = mask & live
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    has_queries, has_keys = lowest < HEADS, lowest + TILE > HEADS

    kept_first, kept_second = first, second
    if NORMED:
        squares = tl.sum(first * first + second * second, axis=1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        of_queries, of_keys = inside & has_queries, inside & has_keys
        q_first = tl.load(q_norm + pair, mask=of_queries, other=0.0).to(tl.float32)
        q_second = tl.load(q_norm + pair + PAIRS, mask=of_queries, other=0.0).to(tl.float32)
        k_first = tl.load(k_norm + pair, mask=of_keys, other=0.0).to(tl.float32)
        k_second = tl.load(k_norm + pair + PAIRS, mask=of_keys, other=0.0).to(tl.float32)
        first = (first * scale).to(dtype).to(tl.float32) * tl.where(is_query, q_first, k_first)
        second = (second * scale).to(dtype).to(tl.float32) * tl.where(is_query, q_second, k_second)
        first, second = first.to(dtype).to(tl.float32), second.to(dtype).to(tl.float32)

    angle = position.to(tl.int64) * PAIRS + pair
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0)
    turned_first = tl.where(is_value, kept_first, first * c - second * s)
    turned_second = tl.where(is_value, kept_second, second * c + first * s)
    turned_first = tl.where(live, turned_first, 0.0).to(dtype)
    turned_second = tl.where(live, turned_second, 0.0).to(dtype)

    to_query = out + token * out_stride + head * HEAD_DIM + pair
    tl.store(to_query, turned_first, mask=is_query & inside)
    tl.store(to_query + PAIRS, turned_second, mask=is_query & inside)

    column = position // PAGE_TOKENS
    page = tl.load(tables + slot.to(tl.int64) * table_stride + column, mask=live, other=0)
    offset = position - column * PAGE_TOKENS
    kv_head = tl.where(is_value, head - HEADS - KV_HEADS, head - HEADS)
    to_page = storage + page.to(tl.int64) * page_stride
    to_page += tl.where(is_value, part_stride, 0)
    to_page += (kv_head * PAGE_TOKENS + offset) * HEAD_DIM + pair
    mask = mask & (head >= HEADS)
    tl.store(to_page, turned_first, mask=mask)
    tl.store(to_page + PAIRS, turned_second, mask=mask)


def place_qkv(
    qkv: torch.Tensor,
    norms: Norms | None,
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
    """Queries [T, N, D] of projections `qkv` [T, N + 2 V, D] (or flat), whose keys and values go
    into `storage` [pages, layers, 2, V, page_tokens, D].

    `norms`: weights [D] of queries and keys. `cos` and `sin` are float32 [positions, D / 2], or
    [positions, 1, D / 2]; `positions` and `slots` int32 [T]; `tables` [slots, columns] holds pages.
    """
    kv_heads, page_tokens, head_dim = storage.shape[3:]
    num_tokens = len(qkv)
    width = qkv.shape[1] if qkv.dim() == 3 else qkv.shape[1] // head_dim
    heads = width - 2 * kv_heads
    if out is None:
        shape = (num_tokens, heads, head_dim)
        out = torch.empty(shape, dtype=qkv.dtype, device=qkv.device)
    if not num_tokens:
        return out
    assert qkv.stride()[1:] in ((1,), (head_dim, 1))
    assert out.stride()[1:] == (head_dim, 1)
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    sizes = _sizes(width, head_dim)
    ours = storage[:, layer]
    q_norm, k_norm = norms or (cos, cos)
    place_qkv_kernel[(num_tokens * triton.cdiv(width, sizes["TILE"]),)](
        qkv,
        q_norm,
        k_norm,
        cos,
        sin,
        positions,
        slots,
        tables,
        ours,
        out,
        qkv.stride(0),
        tables.stride(0),
        ours.stride(0),
        ours.stride(1),
        out.stride(0),
        eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        PAGE_TOKENS=page_tokens,
        NORMED=norms is not None,
        **sizes,
    )
    return out


def _sizes(all_heads: int, head_dim: int) -> dict[str, int]:
    """Whole tokens of up to 8192 elements, 64 of them per thread; no smaller tile is faster on an
    H200, though a third of a tile of 64 may be empty (`batchgen bench tune`). Where there are more
    heads, tiles that divide them, measured by nobody: half empty ones take twice the registers."""
    half = triton.next_power_of_2(head_dim // 2)
    most = max(1, 4096 // half)
    tile = triton.next_power_of_2(all_heads)
    if tile > most:
        tile = min(most, max(8, all_heads & -all_heads))
    default = {"TILE": tile, "HALF": half, "num_warps": max(1, tile * half // 1024)}
    return config("place_qkv", f"d{head_dim}_h{all_heads}", default)


def place_qkv_work(
    num_tokens: int, heads: int, kv_heads: int, head_dim: int, itemsize: int
) -> Work:
    elements = num_tokens * (heads + 2 * kv_heads) * head_dim
    angles = 4.0 * num_tokens * head_dim
    return Work(flops=10.0 * elements, bytes=2.0 * elements * itemsize + angles)


def _ahead(
    name: str, heads: int, kv_heads: int, head_dim: int, *, normed: bool, dtype: str = "bf16"
) -> AheadCase:
    sizes = _sizes(heads + 2 * kv_heads, head_dim)
    warps = sizes.pop("num_warps")
    constants: dict[str, Any] = {"HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": head_dim}
    constants |= {"PAGE_TOKENS": 16, "NORMED": normed, **sizes}
    signature = dict.fromkeys(("qkv", "q_norm", "k_norm"), f"*{dtype}")
    signature |= {"cos": "*fp32", "sin": "*fp32"}
    signature |= dict.fromkeys(("positions", "slots", "tables"), "*i32")
    signature |= dict.fromkeys(("storage", "out"), f"*{dtype}")
    strides = ("qkv_stride", "table_stride", "page_stride", "part_stride", "out_stride")
    signature |= {**dict.fromkeys(strides, "i32"), "eps": "fp32"}
    signature |= dict.fromkeys(constants, "constexpr")
    return AheadCase(
        name=f"place_qkv_{name}",
        kernel=place_qkv_kernel,
        signature=signature,
        constants=constants,
        num_warps=warps,
    )


AHEAD = (
    _ahead("qwen3_8b", 32, 8, 128, normed=True),
    _ahead("qwen3_30b", 32, 4, 128, normed=True),
    _ahead("llama_70b", 64, 8, 128, normed=False),
    _ahead("gpt_oss", 64, 8, 64, normed=False),
    _ahead("dim_256", 8, 4, 256, normed=True),
    _ahead("float", 32, 8, 128, normed=True, dtype="fp32"),
)
