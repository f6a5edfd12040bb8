"""Attention of one new token per row over paged KV, split along the keys; it writes no KV.

Idea. A row's query heads that share a KV head are the rows of one small product, padded to 16, so
that every key is read once. A program walks over tiles of keys with an online softmax in float32
(powers of two: the scale holds log2 e). Few rows would leave most of the GPU idle, and one long row
among short ones would be waited for, so the keys of a row are cut into splits. The grid is known on
the host, contexts are not: the grid has room for `most_items` + B items, and every program finds
out alone which it is. It adds up the B contexts (a few KB, from the L2), divides them by
`most_items`, which is the longest split of all rows, and finds its row by a running sum of splits.
The sum of roundings is below B, so the room suffices whatever the contexts are; programs beyond the
last item return at once. A row of one split is written directly; others leave a normalised partial
and the log2 of their sum in `scratch`, and a second kernel weighs them together.

Values may be the first `value_dim` elements of the keys (latents, `parts` == 1): then a tile is read
once for both products, and the elements behind them (rotary keys) are a product of their own.

Bytes: K and V of the visible keys once for each tile of heads, context * parts * V * D * itemsize
per row; partials are N * E * 8 bytes per split of at least 256 keys: under 2% at 32 heads over 8.
FLOPs: 2 * N * (D + E) per key. Floor on an H200 (4.3 TB/s, 790 TFLOP/s): bytes / 4.3e12 s for
grouped heads (8 FLOPs per byte at 32/8, the ridge is at 184): 64 rows of 4,096 keys of 32/8 heads
of 128, 1.07 GB, 250 us. Absorbed latents with 128 heads have 242 FLOPs per byte: FLOPs / 790e12 s.

Results depend on how keys are split, hence on the other rows; the last bits are not reproducible.
Shapes: B rows, N query heads, V kv heads, P page_tokens, D head_dim, E value_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import (
    INTERPRETED,
    AheadCase,
    Work,
    config,
    num_multiprocessors,
)

LOG2_E = math.log2(math.e)
# Keys of a split, at least: a partial is then under 2% of what is read (see above).
LEAST_KEYS = 256
# Programs per multiprocessor that splits aim at: about four rounds of two resident ones, so that a
# last round that is not full costs little.
PROGRAMS = 8
# Most rows that the search for an item looks at together.
SEARCH_ROWS = 1024


def attend_reference(
    q_TND: torch.Tensor,
    positions: torch.Tensor,
    keys_VSD: torch.Tensor,
    values_VSE: torch.Tensor,
    scale: float,
    window: int,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Queries at `positions` [T] of one row over its keys 0 to S - 1, in float32: [T, N, E]."""
    group = q_TND.shape[1] // len(keys_VSD)
    keys, values = (x.float().repeat_interleave(group, 0) for x in (keys_VSD, values_VSE))
    scores = scale * torch.einsum("tnd,nsd->tns", q_TND.float(), keys)
    behind = positions[:, None] - torch.arange(keys.shape[1], device=q_TND.device)
    hidden = (behind < 0) | (behind >= window) if window else behind < 0
    scores.masked_fill_(hidden[:, None], -math.inf)
    if sinks is not None:
        last = sinks.float()[None, :, None].expand(len(q_TND), -1, 1)
        scores = torch.cat((scores, last), -1)
    weights = scores.softmax(-1)[..., : keys.shape[1]]
    return torch.einsum("tns,nse->tne", weights, values)


def keys_and_values(
    storage: torch.Tensor, layer: int, pages: torch.Tensor, context: int, value_dim: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `context` keys [V, S, D] and values [V, S, E] of a row, through its pages."""
    kept = storage[pages[: -(-context // storage.shape[4])].long(), layer]
    parts = kept.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context]
    return parts[0], parts[1] if value_dim is None else parts[0, ..., :value_dim]


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
    """What `decode_attention` gives, in float32."""
    out = q.new_zeros(*q.shape[:2], value_dim or q.shape[2], dtype=torch.float32)
    for row, (slot, context) in enumerate(zip(slots.tolist(), contexts.tolist(), strict=True)):
        if context:
            kept = keys_and_values(storage, layer, tables[slot], context, value_dim)
            last = contexts[row : row + 1] - 1
            out[row] = attend_reference(q[row : row + 1], last, *kept, scale, window, sinks)[0]
    return out


@triton.jit
def _first_key(context, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Where the first tile with a visible key begins."""
    first = tl.maximum(context - WINDOW, 0) // TILE * TILE
    return first if WINDOW else first * 0


@triton.jit
def _find_item(
    contexts,
    num_rows,
    item,
    most_items,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The row of an item, the row's first item, and keys of the longest split; the row is
    `num_rows` behind the last item."""
    lengths = tl.zeros((BLOCK_B,), tl.int32)
    for at in tl.range(0, num_rows, BLOCK_B, num_stages=1):
        rows = at + tl.arange(0, BLOCK_B)
        some = tl.load(contexts + rows, mask=rows < num_rows, other=0)
        lengths += some - _first_key(some, WINDOW, TILE)
    keys = tl.cdiv(tl.cdiv(tl.sum(lengths), most_items), TILE) * TILE
    keys = tl.maximum(keys, LEAST)
    row = item * 0
    first = item * 0
    before = item * 0
    for at in tl.range(0, num_rows, BLOCK_B, num_stages=1):
        rows = at + tl.arange(0, BLOCK_B)
        some = tl.load(contexts + rows, mask=rows < num_rows, other=0)
        counts = tl.maximum(tl.cdiv(some - _first_key(some, WINDOW, TILE), keys), 1)
        ends = tl.cumsum(tl.where(rows < num_rows, counts, 0)) + before
        passed = (ends <= item) & (rows < num_rows)
        row += tl.sum(passed.to(tl.int32))
        first = tl.maximum(first, tl.max(tl.where(passed, ends, 0)))
        before = tl.max(ends)
    return row, first, keys


@triton.jit
def _pages(table, start, first, end, PAGE: tl.constexpr, TILE: tl.constexpr):
    """Pages of the keys of a tile from `first` to `end`: one, or one for each key."""
    if PAGE >= TILE:
        pages = tl.load(table + start // PAGE, mask=start < end, other=0)
    else:
        numbers = start + tl.arange(0, TILE)
        pages = tl.load(table + numbers // PAGE, mask=(numbers >= first) & (numbers < end), other=0)
    return pages


@triton.jit(do_not_specialize=["layer", "num_rows", "most_items"])
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
        row, first, keys = _find_item(
            contexts, num_rows, item, most_items, WINDOW, TILE, LEAST, BLOCK_B
        )
        if row >= num_rows:
            return
    context = tl.load(contexts + row)
    first_seen = tl.maximum(context - WINDOW, 0) if WINDOW else 0
    origin = _first_key(context, WINDOW, TILE)
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
    # A program writes for all heads of its tile, the last dimension masked if it is not a power
    # of two.
    wanted = of_head & (dims[None, :] < VALUE_DIM)
    q_at = q + row.to(tl.int64) * q_row_stride + heads[:, None] * q_head_stride
    queries = tl.load(q_at + dims[None, :], mask=wanted, other=0.0)
    queries = queries.to(tl.float32) if WIDEN else queries
    if BLOCK_R:
        rest = tl.arange(0, BLOCK_R)
        of_rest = rest < HEAD_DIM - VALUE_DIM
        q_rest = tl.load(
            q_at + VALUE_DIM + rest[None, :], mask=of_head & of_rest[None, :], other=0.0
        )
        q_rest = q_rest.to(tl.float32) if WIDEN else q_rest

    table = tables + tl.load(slots + row).to(tl.int64) * num_columns
    origin_KV = storage + layer.to(tl.int64) * LAYER_SIZE + kv_head * (PAGE * HEAD_DIM)
    page_stride = num_layers * LAYER_SIZE
    exponent = scale * 1.4426950408889634
    top = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_E), tl.float32)
    # Pages are loaded one tile ahead by hand: the compiler, left to it, spends its stages on them.
    pages = _pages(table, begin, first_seen, end, PAGE, TILE)
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
        pages = _pages(table, start + TILE, first_seen, end, PAGE, TILE)
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


@triton.jit
def decode_reduce_kernel(
    partials,
    sums,
    plan,
    sinks,
    out,
    out_row_stride,
    out_head_stride,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One head of one row: partials weighed by their sums, and the sink."""
    row, head = tl.program_id(0), tl.program_id(1)
    count = tl.load(plan + 2 * row + 1).to(tl.int32)
    if count < 2:
        return
    first = tl.load(plan + 2 * row).to(tl.int32)
    dims = tl.arange(0, BLOCK_E)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    acc = tl.zeros((BLOCK_E,), tl.float32)
    for at in tl.range(0, count, BLOCK_S):
        splits = at + tl.arange(0, BLOCK_S)
        place = (first + splits).to(tl.int64) * HEADS + head
        logs = tl.load(sums + place, mask=splits < count, other=float("-inf"))
        mask = (splits < count)[:, None] & (dims[None, :] < VALUE_DIM)
        part = tl.load(partials + place[:, None] * VALUE_DIM + dims[None, :], mask=mask, other=0.0)
        new_top = tl.maximum(top, tl.max(logs, 0))
        weights = tl.exp2(logs - new_top)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, 0)
        acc = acc * fade + tl.sum(part * weights[:, None], 0)
        top = new_top
    if HAS_SINKS:
        sink = tl.load(sinks + head) * 1.4426950408889634
        new_top = tl.maximum(top, sink)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.exp2(sink - new_top)
        acc = acc * fade
    to = out + row.to(tl.int64) * out_row_stride + head * out_head_stride + dims
    tl.store(to, (acc / total).to(out.dtype.element_ty), mask=dims < VALUE_DIM)


@dataclass(frozen=True, slots=True)
class Splits:
    """How a launch is cut: `num_items` bounds the pairs of row and split; without `split` they are
    the rows."""

    split: bool
    num_items: int
    most_items: int
    least_keys: int

    def floats(self, num_rows: int, num_heads: int, value_dim: int) -> tuple[int, int, int]:
        """Sizes of partials, of their sums and of the plan, whole lines of 16 bytes."""
        places = self.num_items * num_heads
        return _round_up(places * value_dim, 4), _round_up(places, 4), _round_up(2 * num_rows, 4)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


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


def _splits(
    num_rows: int, per_item: int, longest: int, tiles: dict[str, int], device: torch.device
) -> Splits:
    """`per_item`: programs of an item; `longest`: most keys of a row."""
    least = _round_up(LEAST_KEYS, tiles["TILE"])
    multiprocessors = num_multiprocessors(device)
    # Enough programs for two rounds, all of them short: splits would not pay the second launch.
    many_short = num_rows * per_item >= 4 * multiprocessors and longest <= 4 * least
    if longest <= least or many_short:
        return Splits(False, num_rows, num_rows, least)
    most = max(1, tiles["programs"] * multiprocessors // per_item)
    return Splits(True, num_rows + min(most, num_rows * -(-longest // least)), most, least)


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
    return tiles, _splits(num_rows, per_item, longest, tiles, storage.device)


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
    _, num_layers, parts, kv_heads, page, head_dim = storage.shape
    num_rows, num_heads, _ = q.shape
    dim = value_dim or head_dim
    assert storage.is_contiguous() and tables.is_contiguous() and page & (page - 1) == 0
    assert scale > 0 and (parts == 1) == (value_dim is not None)
    out = q.new_empty(num_rows, num_heads, dim) if out is None else out
    if not num_rows:
        return out
    assert q.stride(2) == 1 and out.stride(2) == 1 and q.shape[2] == head_dim
    tiles, splits = _prepare(num_rows, num_heads, dim, storage, max_context, window)
    partials = sums = plan = out
    if splits.split:
        sizes = splits.floats(num_rows, num_heads, dim)
        if scratch is None:
            scratch = q.new_empty(sum(sizes), dtype=torch.float32)
        partials, sums, plan = scratch[: sum(sizes)].split(sizes)
    head_tiles = -(-(num_heads // kv_heads) // tiles["BLOCK_H"])
    block_e = max(16, triton.next_power_of_2(dim))
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
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        tables.shape[1],
        num_layers,
        layer,
        num_rows,
        splits.most_items,
        scale,
        HEADS=num_heads,
        KV_HEADS=kv_heads,
        PARTS=parts,
        PAGE=page,
        HEAD_DIM=head_dim,
        VALUE_DIM=dim,
        BLOCK_E=block_e,
        BLOCK_R=max(16, triton.next_power_of_2(head_dim - dim)) if head_dim > dim else 0,
        WINDOW=window,
        HAS_SINKS=sinks is not None,
        SPLIT=splits.split,
        LEAST=splits.least_keys,
        BLOCK_B=min(SEARCH_ROWS, max(16, triton.next_power_of_2(num_rows))),
        BLOCK_H=tiles["BLOCK_H"],
        TILE=tiles["TILE"],
        WIDEN=INTERPRETED,
        num_warps=tiles["num_warps"],
        num_stages=tiles["num_stages"],
    )
    if splits.split:
        decode_reduce_kernel[(num_rows, num_heads)](
            partials,
            sums,
            plan,
            q if sinks is None else sinks,
            out,
            out.stride(0),
            out.stride(1),
            HEADS=num_heads,
            VALUE_DIM=dim,
            BLOCK_E=block_e,
            HAS_SINKS=sinks is not None,
            BLOCK_S=16,
            num_warps=4 if block_e > 128 else 2,
        )
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


_POINTERS = {"tables": "*i32", "slots": "*i32", "contexts": "*i32", "sinks": "*fp32"}
_POINTERS |= {"partials": "*fp32", "sums": "*fp32", "plan": "*fp32"}


def _case(
    name: str, heads: int, kv_heads: int, head_dim: int, page: int = 64, **changes: object
) -> AheadCase:
    """The kernel as `decode_attention` launches it on bfloat16."""
    latent = head_dim > 512
    dim = 512 if latent else head_dim
    group = heads // kv_heads
    tiles = _tiles(group, head_dim, dim, 1 if latent else 2, page, 2)
    constants = {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "PARTS": 1 if latent else 2,
        "PAGE": page,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": dim,
        "BLOCK_E": triton.next_power_of_2(dim),
        "BLOCK_R": head_dim - dim,
        "WINDOW": 0,
        "HAS_SINKS": False,
        "SPLIT": True,
        "LEAST": LEAST_KEYS,
        "BLOCK_B": 64,
        "BLOCK_H": tiles["BLOCK_H"],
        "TILE": tiles["TILE"],
        "WIDEN": False,
    } | changes
    types = _POINTERS | {"q": "*bf16", "storage": "*bf16", "out": "*bf16", "scale": "fp32"}
    strides = ("q_row_stride", "q_head_stride", "out_row_stride", "out_head_stride")
    types |= dict.fromkeys(strides, "i32:16")
    types |= dict.fromkeys(("num_columns", "num_layers", "layer", "num_rows", "most_items"), "i32")
    return AheadCase(
        name=name,
        kernel=decode_attention_kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        num_warps=tiles["num_warps"],
        num_stages=tiles["num_stages"],
        # Sixteen rows are too few for wgmma; the 64 of latents are not.
        tensor_cores=latent and group >= 64,
    )


def _reduce_case(name: str, heads: int, dim: int) -> AheadCase:
    constants = {"HEADS": heads, "VALUE_DIM": dim, "BLOCK_E": dim, "HAS_SINKS": True, "BLOCK_S": 16}
    names = ("partials", "sums", "plan", "sinks")
    types = {name: "*fp32" for name in names} | {"out": "*bf16"}
    types |= {"out_row_stride": "i32:16", "out_head_stride": "i32:16"}
    return AheadCase(
        name=name,
        kernel=decode_reduce_kernel,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constants=constants,
        num_warps=4 if dim > 128 else 2,
    )


AHEAD = (
    _case("32/8 heads of 128, pages of 64", 32, 8, 128),
    _case("32/4 heads of 128, pages of 16", 32, 4, 128, page=16),
    _case("64/8 heads of 64, window and sinks", 64, 8, 64, WINDOW=128, HAS_SINKS=True),
    _case("16/8 heads of 256, one split", 16, 8, 256, SPLIT=False),
    _case("128 heads over latents of 576", 128, 1, 576),
    _case("16 heads over latents of 576", 16, 1, 576),
    _reduce_case("reduction, values of 128", 32, 128),
    _reduce_case("reduction, values of 512", 128, 512),
)
