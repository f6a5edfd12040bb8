"""Attention of one new token per row over paged KV, split along the keys; it writes no KV.

Idea. A row's query heads that share a KV head are the rows of one small product, padded to 16, so
that every key is read once. A program walks over tiles of keys with an online softmax in float32
(powers of two: the scale holds log2 e). Few rows would leave most of the GPU idle, and one long row
among short ones would be waited for, so the keys of a row are cut into splits. The host knows no
contexts: every program finds out alone which split of which row it has (`decode_splits`), from the
B contexts, a few KB from the L2. A row of one split is written directly; others leave partials in
`scratch`, which a second kernel weighs together.

Values may be the first `value_dim` elements of the keys (latents, `parts` == 1): then a tile is
read once for both products, and what is behind them (rotary keys) is a product of its own.

Bytes: K and V of the visible keys once for each tile of heads, context * parts * V * D * itemsize
per row; partials are N * E * 8 bytes per split of at least 256 keys: under 2% at 32 heads over 8.
FLOPs: 2 * N * (D + E) per key. Floor on an H200 (4.3 TB/s, 790 TFLOP/s): bytes / 4.3e12 s for
grouped heads (8 FLOPs per byte at 32/8, the ridge is at 184): 64 rows of 4,096 keys of 32/8 heads
of 128, 1.07 GB, 250 us. Absorbed latents with 128 heads have 242 FLOPs per byte: FLOPs / 790e12 s.

Results depend on how keys are split, hence on the other rows; the last bits are not reproducible.
Shapes: B rows, N query heads, V kv heads, P page_tokens, D head_dim, E value_dim.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.decode_splits import (
    LEAST_KEYS,
    PROGRAMS,
    Splits,
    find_item,
    first_key,
    reduce_splits,
    splits_for,
)
from batchgen.exec.kernels.launching import AheadCase, Work, config
from batchgen.exec.kernels.paged_keys import (
    check_layout,
    chunks_reference,
    load_pages,
    paged_case,
    paged_constants,
)


def decode_attention_reference(
    q: torch.Tensor,
    storage: torch.Tensor,
    layer: int,
    tables: torch.Tensor,
    slots: torch.Tensor,
    contexts: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    sinks: torch.Tensor | None = None,
    value_dim: int | None = None,
) -> torch.Tensor:
    """What `decode_attention` gives, in float32: every row is a chunk of one token."""
    return chunks_reference(
        q,
        storage,
        layer,
        tables,
        slots=slots,
        starts=contexts - 1,
        firsts=torch.arange(len(slots)),
        lengths=(contexts > 0).int(),
        scale=scale,
        window=window,
        sinks=sinks,
        value_dim=value_dim,
    )


@triton.jit(do_not_specialize=["num_columns", "layer", "num_rows", "most_items"])
def decode_attention_kernel(
    q,
    storage,
    tables,
    slots,
    contexts,
    sinks,
    out,
    partials,
    sums,
    plan,
    q_row_stride,
    q_head_stride,
    out_row_stride,
    out_head_stride,
    num_columns,
    num_layers,
    layer,
    num_rows,
    most_items,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    SPLIT: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    GROUP: tl.constexpr = HEADS // KV_HEADS
    HEAD_TILES: tl.constexpr = (GROUP + BLOCK_H - 1) // BLOCK_H
    LAYER_SIZE: tl.constexpr = PARTS * KV_HEADS * PAGE * HEAD_DIM
    program = tl.program_id(0)
    item = program // (KV_HEADS * HEAD_TILES)
    kv_head = program // HEAD_TILES % KV_HEADS
    row, first, keys = item, item, 0
    if SPLIT:
        row, first, keys = find_item(
            contexts, num_rows, item, most_items, WINDOW, TILE, LEAST, BLOCK_B
        )
        if row >= num_rows:
            return
    context = tl.load(contexts + row)
    first_seen = tl.maximum(context - WINDOW, 0) if WINDOW else 0
    origin = first_key(context, WINDOW, TILE)
    begin, end, count = origin, context, 1
    if SPLIT:
        count = tl.maximum(tl.cdiv(context - origin, keys), 1)
        share = tl.cdiv(tl.cdiv(context - origin, TILE), count) * TILE
        begin = origin + (item - first) * share
        end = tl.minimum(begin + share, context)

    in_group = program % HEAD_TILES * BLOCK_H + tl.arange(0, BLOCK_H)
    heads = kv_head * GROUP + in_group
    dims = tl.arange(0, BLOCK_E)
    of_head = in_group[:, None] < GROUP
    wanted = of_head & (dims[None, :] < VALUE_DIM)
    q_at = q + row.to(tl.int64) * q_row_stride + heads[:, None] * q_head_stride
    queries = tl.load(q_at + dims[None, :], mask=wanted, other=0.0)
    queries = queries.to(tl.float32) if WIDEN else queries
    if BLOCK_R:
        rest = tl.arange(0, BLOCK_R)
        of_rest = rest < HEAD_DIM - VALUE_DIM
        q_mask = of_head & of_rest[None, :]
        q_rest = tl.load(q_at + VALUE_DIM + rest[None, :], mask=q_mask, other=0.0)
        q_rest = q_rest.to(tl.float32) if WIDEN else q_rest

    table = tables + tl.load(slots + row).to(tl.int64) * num_columns
    origin_KV = storage + layer.to(tl.int64) * LAYER_SIZE + kv_head * (PAGE * HEAD_DIM)
    page_stride = num_layers * LAYER_SIZE
    exponent = scale * 1.4426950408889634
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_E), tl.float32)
    # Pages are loaded one tile ahead by hand: the compiler, left to it, spends its stages on them.
    pages = load_pages(table, begin, first_seen, end, PAGE, TILE)
    for start in tl.range(begin, end, TILE):
        numbers = start + tl.arange(0, TILE)
        seen = numbers < end
        if WINDOW:
            seen = seen & (numbers >= first_seen)
        if PAGE >= TILE:
            at = origin_KV + pages.to(tl.int64) * page_stride + start % PAGE * HEAD_DIM
            at = at + tl.arange(0, TILE)[:, None] * HEAD_DIM
        else:
            offsets = pages.to(tl.int64) * page_stride + numbers % PAGE * HEAD_DIM
            at = origin_KV + offsets[:, None]
        pages = load_pages(table, start + TILE, first_seen, end, PAGE, TILE)
        mask = seen[:, None] & (dims[None, :] < VALUE_DIM)
        k = tl.load(at + dims[None, :], mask=mask, other=0.0)
        k = k.to(tl.float32) if WIDEN else k
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee")
        if BLOCK_R:
            mask_rest = seen[:, None] & of_rest[None, :]
            k_rest = tl.load(at + VALUE_DIM + rest[None, :], mask=mask_rest, other=0.0)
            k_rest = k_rest.to(tl.float32) if WIDEN else k_rest
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        scores = tl.where(seen[None, :], scores * exponent, float("-inf"))
        # The first tile of a split has a visible key, so that `top` is a number from there on.
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, 1)
        top = new_top
        if PARTS == 1:
            v = k
        else:
            at_v = at + KV_HEADS * PAGE * HEAD_DIM + dims[None, :]
            v = tl.load(at_v, mask=mask, other=0.0)
            v = v.to(tl.float32) if WIDEN else v
        acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")

    if SPLIT:
        if (kv_head == 0) & (program % HEAD_TILES == 0) & (item == first):
            tl.store(plan + 2 * row, first)
            tl.store(plan + 2 * row + 1, count)
        if count > 1:
            place = item.to(tl.int64) * HEADS + heads
            tl.store(sums + place, top + tl.log2(total), mask=in_group < GROUP)
            to = partials + place[:, None] * VALUE_DIM + dims[None, :]
            tl.store(to, acc / total[:, None], mask=wanted)
            return
    if HAS_SINKS:
        sink = tl.load(sinks + heads, mask=in_group < GROUP, other=0.0) * 1.4426950408889634
        new_top = tl.maximum(top, sink)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.exp2(sink - new_top)
        acc = acc * fade[:, None]
    total = tl.where(total == 0.0, 1.0, total)  # a row without keys
    to = out + row.to(tl.int64) * out_row_stride + heads[:, None] * out_head_stride
    tl.store(to + dims[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=wanted)


def _tiles(
    group: int, head_dim: int, value_dim: int, parts: int, page: int, itemsize: int
) -> dict[str, int]:
    """Tiles of the kernel for these shapes. About 32 KB of keys and values per stage: with three
    stages two programs fit in a multiprocessor, which then has 128 KB in flight."""
    key_bytes = parts * head_dim * itemsize
    tile = max(16, min(64, 1 << (max(32768 // key_bytes, 1).bit_length() - 1)))
    if value_dim > 256:
        # Absorbed latents: the accumulator of 64 heads takes 8 warps, whose products are wgmma.
        heads = min(64 if itemsize == 2 else 16, max(16, triton.next_power_of_2(group)))
        default = {"BLOCK_H": heads, "TILE": 32, "num_warps": 8, "programs": 4}
        default |= {"num_stages": 2 if heads > 32 else 3}
        if itemsize > 2:
            default |= {"TILE": 16, "num_stages": 1}
    else:
        heads = min(64, max(16, triton.next_power_of_2(group)))
        stages = 3 if tile * key_bytes > 16384 else 4
        if itemsize > 2:
            stages = 2
        default = {"BLOCK_H": heads, "TILE": tile, "num_warps": 4, "num_stages": stages}
        default |= {"programs": PROGRAMS}
    bucket = f"d{head_dim}_e{value_dim}_g{group}_p{page}_b{itemsize}"
    return config("decode_attention", bucket, default)


def _prepare(
    num_rows: int,
    num_heads: int,
    value_dim: int,
    storage: torch.Tensor,
    max_context: int,
    window: int,
) -> tuple[dict[str, int], Splits]:
    _, _, parts, kv_heads, page, head_dim = storage.shape
    group = num_heads // kv_heads
    tiles = _tiles(group, head_dim, value_dim, parts, page, storage.element_size())
    longest = min(max_context, window + tiles["TILE"]) if window else max_context
    per_item = kv_heads * -(-group // tiles["BLOCK_H"])
    programs = tiles.pop("programs", PROGRAMS)
    device = storage.device
    return tiles, splits_for(num_rows, per_item, longest, tiles["TILE"], programs, device)


def decode_scratch_floats(
    num_rows: int,
    num_heads: int,
    storage: torch.Tensor,
    *,
    max_context: int,
    window: int = 0,
    value_dim: int | None = None,
) -> int:
    """Elements of the float32 `scratch` of `decode_attention` for these bounds."""
    dim = value_dim or storage.shape[5]
    _, splits = _prepare(num_rows, num_heads, dim, storage, max_context, window)
    return sum(splits.floats(num_rows, num_heads, dim)) if splits.split else 0


def decode_attention(
    q: torch.Tensor,
    storage: torch.Tensor,
    layer: int,
    tables: torch.Tensor,
    slots: torch.Tensor,
    contexts: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    sinks: torch.Tensor | None = None,
    value_dim: int | None = None,
    max_context: int,
    out: torch.Tensor | None = None,
    scratch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention [B, N, E] of the last token of every row over the keys in its pages.

    q [B, N, D]; storage [pages, layers, parts, V, P, D]; tables [slots, columns], slots [B] and
    contexts [B] int32: row b sees `contexts[b]` keys, at most `max_context`, of pages
    `tables[slots[b]]`. A context of 0 gives zeros. `window`: only so many last keys; `sinks` [N]
    float32: a score of each head without a value. `scratch`: `decode_scratch_floats`.
    """
    num_layers, kv_heads, head_dim = storage.shape[1], storage.shape[3], storage.shape[5]
    num_rows, num_heads, _ = q.shape
    dim = value_dim or head_dim
    assert scale > 0
    out = q.new_empty(num_rows, num_heads, dim) if out is None else out
    check_layout(q, storage, tables, out, value_dim)
    constants = paged_constants(
        num_heads, tuple(storage.shape[2:]), value_dim, window, sinks is not None
    )
    if not num_rows:
        return out
    tiles, splits = _prepare(num_rows, num_heads, dim, storage, max_context, window)
    partials = sums = plan = out
    if splits.split:
        sizes = splits.floats(num_rows, num_heads, dim)
        if scratch is None:
            scratch = q.new_empty(sum(sizes), dtype=torch.float32)
        partials, sums, plan = scratch[: sum(sizes)].split(sizes)
    head_tiles = -(-(num_heads // kv_heads) // tiles["BLOCK_H"])
    decode_attention_kernel[(splits.num_items * kv_heads * head_tiles,)](
        q,
        storage,
        tables,
        slots,
        contexts,
        q if sinks is None else sinks,
        out,
        partials,
        sums,
        plan,
        *q.stride()[:2],
        *out.stride()[:2],
        tables.shape[1],
        num_layers,
        layer,
        num_rows,
        splits.most_items,
        scale,
        **constants,
        SPLIT=splits.split,
        LEAST=splits.least_keys,
        BLOCK_B=splits.search_rows,
        **tiles,
    )
    if splits.split:
        reduce_splits((partials, sums, plan), sinks, out)
    return out


def decode_attention_work(
    num_rows: int,
    num_keys: int,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    itemsize: int = 2,
) -> Work:
    """`num_keys`: visible keys of all rows together. Keys and values are read once."""
    dim = value_dim or head_dim
    kept = head_dim if value_dim else 2 * head_dim
    moved = num_keys * kv_heads * kept + num_rows * num_heads * (head_dim + dim)
    return Work(2.0 * num_keys * num_heads * (head_dim + dim), float(moved * itemsize))


def _case(
    name: str, heads: int, kv_heads: int, head_dim: int, page: int = 64, **changes: object
) -> AheadCase:
    """The kernel as `decode_attention` launches it on bfloat16."""
    latent = head_dim > 512
    dim = 512 if latent else head_dim
    group = heads // kv_heads
    tiles = _tiles(group, head_dim, dim, 1 if latent else 2, page, 2)
    constants = {
        **paged_constants(heads, (1 if latent else 2, kv_heads, page, head_dim), dim),
        "SPLIT": True,
        "LEAST": LEAST_KEYS,
        "BLOCK_B": 64,
        "WIDEN": False,
    } | changes
    # Sixteen rows are too few for wgmma; the 64 of latents are not.
    return paged_case(name, decode_attention_kernel, constants, tiles, latent and group >= 64)


AHEAD = (
    _case("32/8 heads of 128, pages of 64", 32, 8, 128),
    _case("32/4 heads of 128, pages of 16", 32, 4, 128, page=16),
    _case("64/8 heads of 64, window and sinks", 64, 8, 64, WINDOW=128, HAS_SINKS=True),
    _case("16/8 heads of 256, one split", 16, 8, 256, SPLIT=False),
    _case("128 heads over latents of 576", 128, 1, 576),
    _case("16 heads over latents of 576", 16, 1, 576),
)
