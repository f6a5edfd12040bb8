"""Causal attention of prompt chunks over paged KV with what came before; it writes no KV.

Idea. KV of a chunk is in the pages already, so that a prefix and the chunk are one sequence of
keys. Tokens and the query heads of one KV head are flattened, token * G + head, and cut into blocks
of BLOCK_M: products are full whatever G is, and a block spans few positions, so that little is
computed above the diagonal. The number of blocks of a chunk is not known on the host; the grid has
one for every BLOCK_M of all tokens and one more per chunk, which is the most that rounding can add,
and every program finds its chunk by a running sum of blocks. Later blocks of a chunk see more keys
and come first. Keys that all queries of a block see go through a loop without masks, the few on the
diagonal through a second one. A window masks always: what it leaves is short.

Bytes: the keys of a block of queries are read anew for each block, mostly from the L2: a tile of
128 queries takes 128 FLOPs per byte of bfloat16, 3 TB/s from the L2 at 400 TFLOP/s. FLOPs: 2 * N *
(D + E) per visible pair of query and key. Floor on an H200 (790 TFLOP/s): FLOPs / 790e12 s: 8,192
tokens of 32 heads of 128 without prefix, 5.5e11 FLOPs, 0.70 ms; half of that rate is the aim.

Shapes: T tokens, C chunks, N query heads, V kv heads, G = N / V, P page_tokens, D head_dim,
E value_dim.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import (
    AheadCase,
    Capability,
    Work,
    capability,
    cases_by_capability,
)
from batchgen.exec.kernels.paged_keys import (
    check_layout,
    chunks_reference,
    load_pages,
    paged_case,
    paged_constants,
    search_block,
)
from batchgen.exec.kernels.prefill_tiles import prefill_tiles

# Most chunks that the search for a block looks at together.
SEARCH_CHUNKS = 1024


# What `prefill_attention` gives, in float32; zeros for tokens of no chunk.
prefill_attention_reference = chunks_reference


@triton.jit
def _find_block(
    lengths, num_chunks, item, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The chunk of a block and the chunk's first block; the chunk is `num_chunks` behind the last
    block."""
    chunk = item * 0
    first = item * 0
    before = item * 0
    for at in tl.range(0, num_chunks, BLOCK_C, num_stages=1):
        chunks = at + tl.arange(0, BLOCK_C)
        tokens = tl.load(lengths + chunks, mask=chunks < num_chunks, other=0)
        ends = tl.cumsum(tl.cdiv(tokens * GROUP, BLOCK_M)) + before
        passed = (ends <= item) & (chunks < num_chunks)
        chunk += tl.sum(passed.to(tl.int32))
        first = tl.maximum(first, tl.max(tl.where(passed, ends, 0)))
        before = tl.max(ends)
    return chunk, first


@triton.jit
def _attend(
    acc,
    total,
    top,
    queries,
    q_rest,
    positions,
    table,
    origin,
    page_stride,
    exponent,
    begin,
    end,
    first_seen,
    MASKED: tl.constexpr,
    PARTS: tl.constexpr,
    PAGE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """The online softmax over keys from `begin` to `end`. Not masked: whole tiles that every query
    sees."""
    WHOLE: tl.constexpr = not MASKED and VALUE_DIM == BLOCK_E
    dims = tl.arange(0, BLOCK_E)
    rest = tl.arange(0, BLOCK_R if BLOCK_R else 16)
    # Pages are loaded one tile ahead by hand: the compiler, left to it, spends its stages on them.
    pages = load_pages(table, begin, first_seen, end, PAGE, TILE)
    for start in tl.range(begin, end, TILE):
        numbers = start + tl.arange(0, TILE)
        if PAGE >= TILE:
            at = origin + pages.to(tl.int64) * page_stride + start % PAGE * HEAD_DIM
            at = at + tl.arange(0, TILE)[:, None] * HEAD_DIM
        else:
            offsets = pages.to(tl.int64) * page_stride + numbers % PAGE * HEAD_DIM
            at = origin + offsets[:, None]
        pages = load_pages(table, start + TILE, first_seen, end, PAGE, TILE)
        mask = dims[None, :] < VALUE_DIM
        if MASKED:
            held = (numbers < end) & (numbers >= first_seen)
            mask = mask & held[:, None]
        k_at = at + dims[None, :]
        k = tl.load(k_at) if WHOLE else tl.load(k_at, mask=mask, other=0.0)
        k = k.to(tl.float32) if WIDEN else k
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee")
        if BLOCK_R:
            of_rest = rest[None, :] < HEAD_DIM - VALUE_DIM
            if MASKED:
                of_rest = held[:, None] & of_rest
            k_rest = tl.load(at + VALUE_DIM + rest[None, :], mask=of_rest, other=0.0)
            k_rest = k_rest.to(tl.float32) if WIDEN else k_rest
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        if MASKED:
            behind = positions[:, None] - numbers[None, :]
            seen = (behind >= 0) & (behind < WINDOW) if WINDOW else behind >= 0
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * exponent)
        # Under a window a query may see nothing of its block's first tiles.
        base = tl.where(new_top == float("-inf"), 0.0, new_top) if WINDOW else new_top
        weights = tl.exp2(scores * exponent - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        top = new_top
        acc = acc * fade[:, None]
        if PARTS == 1:
            v = k
        else:
            v_at = k_at + KV_HEADS * PAGE * HEAD_DIM
            v = tl.load(v_at) if WHOLE else tl.load(v_at, mask=mask, other=0.0)
            v = v.to(tl.float32) if WIDEN else v
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
    return acc, total, top


@triton.jit(do_not_specialize=["num_columns", "layer", "num_chunks"])
def prefill_attention_kernel(
    q,
    storage,
    tables,
    slots,
    starts,
    firsts,
    lengths,
    sinks,
    out,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    num_columns,
    num_layers,
    layer,
    num_chunks,
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
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    WIDEN: tl.constexpr,
):
    GROUP: tl.constexpr = HEADS // KV_HEADS
    LAYER_SIZE: tl.constexpr = PARTS * KV_HEADS * PAGE * HEAD_DIM
    item = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    chunk, first_block = _find_block(lengths, num_chunks, item, GROUP, BLOCK_M, BLOCK_C)
    if chunk >= num_chunks:
        return
    length = tl.load(lengths + chunk)
    start = tl.load(starts + chunk)
    num_blocks = tl.cdiv(length * GROUP, BLOCK_M)
    row = (num_blocks - 1 - (item - first_block)) * BLOCK_M
    first_token = row // GROUP
    last_token = tl.minimum((row + BLOCK_M - 1) // GROUP, length - 1)
    rows = row + tl.arange(0, BLOCK_M)
    tokens = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    positions = start + tokens
    flat = (tl.load(firsts + chunk) + tokens).to(tl.int64)

    dims = tl.arange(0, BLOCK_E)
    wanted = (tokens < length)[:, None] & (dims[None, :] < VALUE_DIM)
    q_at = q + (flat * q_token_stride + heads * q_head_stride)[:, None]
    queries = tl.load(q_at + dims[None, :], mask=wanted, other=0.0)
    queries = queries.to(tl.float32) if WIDEN else queries
    q_rest = queries
    if BLOCK_R:
        rest = tl.arange(0, BLOCK_R)
        of_rest = (tokens < length)[:, None] & (rest[None, :] < HEAD_DIM - VALUE_DIM)
        q_rest = tl.load(q_at + VALUE_DIM + rest[None, :], mask=of_rest, other=0.0)
        q_rest = q_rest.to(tl.float32) if WIDEN else q_rest

    table = tables + tl.load(slots + chunk).to(tl.int64) * num_columns
    origin = storage + layer.to(tl.int64) * LAYER_SIZE + kv_head * (PAGE * HEAD_DIM)
    page_stride = num_layers * LAYER_SIZE
    exponent = scale * 1.4426950408889634
    end = start + last_token + 1
    # A second loop costs registers, which accumulators of 512 columns do not leave.
    ONE_LOOP: tl.constexpr = WINDOW > 0 or BLOCK_E > 256
    first_seen = tl.maximum(start + first_token + 1 - WINDOW, 0) if WINDOW else 0
    begin = first_seen // TILE * TILE
    diagonal = begin if ONE_LOOP else (start + first_token + 1) // TILE * TILE
    acc = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for MASKED in tl.static_range(1 if ONE_LOOP else 0, 2):
        acc, total, top = _attend(
            acc, total, top, queries, q_rest, positions, table, origin, page_stride, exponent,
            diagonal if MASKED else begin, end if MASKED else diagonal, first_seen,
            MASKED, PARTS, PAGE, KV_HEADS, HEAD_DIM, VALUE_DIM, BLOCK_E, BLOCK_R, WINDOW, TILE,
            WIDEN,
        )  # fmt: skip
    if HAS_SINKS:
        sink = tl.load(sinks + heads) * 1.4426950408889634
        new_top = tl.maximum(top, sink)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.exp2(sink - new_top)
        acc = acc * fade[:, None]
    total = tl.where(total == 0.0, 1.0, total)  # rows behind the chunk's last
    to = out + (flat * out_token_stride + heads * out_head_stride)[:, None] + dims[None, :]
    tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=wanted)


def prefill_attention(
    q: torch.Tensor,
    storage: torch.Tensor,
    layer: int,
    tables: torch.Tensor,
    *,
    slots: torch.Tensor,
    starts: torch.Tensor,
    firsts: torch.Tensor,
    lengths: torch.Tensor,
    num_tokens: int,
    max_length: int,
    scale: float,
    window: int = 0,
    sinks: torch.Tensor | None = None,
    value_dim: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention [T, N, E] of the tokens of chunks; other tokens of `out` are not written.

    q [T, N, D]; storage [pages, layers, parts, V, P, D]; tables [slots, columns]; of each chunk,
    [C] int32: its slot, the tokens before it, the number of its first token in q, its length, which
    may be 0. Token i of a chunk sees keys 0 to starts + i. `num_tokens` and `max_length` bound the
    sum and the greatest of `lengths`. `window`, `sinks`: as for `decode_attention`.
    """
    _, num_layers, _, kv_heads, page, head_dim = storage.shape
    num_heads = q.shape[1]
    dim = value_dim or head_dim
    assert scale > 0
    out = q.new_empty(q.shape[0], num_heads, dim) if out is None else out
    check_layout(q, storage, tables, out, value_dim)
    constants = paged_constants(
        num_heads, tuple(storage.shape[2:]), value_dim, window, sinks is not None
    )
    group, num_chunks = num_heads // kv_heads, len(slots)
    gpu = capability(q.device)
    tiles = prefill_tiles(group, head_dim, dim, page, storage.element_size(), max_length, gpu)
    rows = tiles["BLOCK_M"]
    at_most = num_chunks * -(-max_length * group // rows)
    num_blocks = min(num_tokens * group // rows + num_chunks, at_most)
    if not num_blocks:
        return out
    prefill_attention_kernel[(num_blocks * kv_heads,)](
        q,
        storage,
        tables,
        slots,
        starts,
        firsts,
        lengths,
        q if sinks is None else sinks,
        out,
        *q.stride()[:2],
        *out.stride()[:2],
        tables.shape[1],
        num_layers,
        layer,
        num_chunks,
        scale,
        **constants,
        BLOCK_C=search_block(num_chunks, SEARCH_CHUNKS),
        **tiles,
    )
    return out


def prefill_attention_work(
    starts: Sequence[int],
    lengths: Sequence[int],
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    itemsize: int = 2,
) -> Work:
    """Chunks of `lengths` tokens behind `starts` others, without a window; keys are read once."""
    dim = value_dim or head_dim
    pairs = sum(n * s + n * (n + 1) // 2 for s, n in zip(starts, lengths, strict=True))
    kept = (sum(starts) + sum(lengths)) * kv_heads * (head_dim if value_dim else 2 * head_dim)
    moved = kept + sum(lengths) * num_heads * (head_dim + dim)
    return Work(2.0 * pairs * num_heads * (head_dim + dim), float(moved * itemsize))


def _cases(
    name: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page: int = 64,
    max_length: int = 4096,
    **changes: object,
) -> tuple[AheadCase, ...]:
    """The kernel as `prefill_attention` launches it on bfloat16."""
    latent = head_dim > 512
    dim = 512 if latent else head_dim
    constants = {
        **paged_constants(heads, (1 if latent else 2, kv_heads, page, head_dim), dim),
        "BLOCK_C": 16,
        "WIDEN": False,
    } | changes

    def case(gpu: Capability) -> AheadCase:
        tiles = prefill_tiles(heads // kv_heads, head_dim, dim, page, 2, max_length, gpu)
        return paged_case(name, prefill_attention_kernel, constants, tiles, not latent)

    return cases_by_capability(case)


AHEAD = (
    *_cases("32/8 heads of 128, pages of 64", 32, 8, 128),
    *_cases("28/4 heads of 128, pages of 16", 28, 4, 128, page=16),
    *_cases("64/8 heads of 64, window and sinks", 64, 8, 64, WINDOW=128, HAS_SINKS=True),
    *_cases("32/32 heads of 96", 32, 32, 96),
    *_cases("16/8 heads of 256", 16, 8, 256),
    *_cases("32/8 heads of 128, 16 tokens", 32, 8, 128, max_length=16),
    *_cases("16/8 heads of 256, 32 tokens", 16, 8, 256, max_length=32),
    *_cases("128 heads over latents of 576", 128, 1, 576),
)
