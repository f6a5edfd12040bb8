"""The parts of a program that chooses the token of one row; `sample` launches them.

Each takes pointers to its row alone. `top` and `mass` [TOPS] are the maxima and masses of the row's
blocks of TOKENS tokens, `best` is its highest logit, and exponentials are of `scale` times what
lies between a logit and that. See `sample` for how they go together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from batchgen.exec.kernels.prefix_search import find, key_of, place_of, reach_count


@triton.jit
def greedy_token(
    logits: tl.tensor,
    top: tl.tensor,
    best: tl.tensor,
    vocab_size: tl.tensor,
    TOPS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tl.tensor:
    """The lowest token of the highest logit."""
    block = tl.min(tl.where(top == best, tl.arange(0, TOPS), TOPS - 1), axis=0)
    at = block * TOKENS + tl.arange(0, TOKENS)
    x = tl.load(logits + at, mask=at < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.min(tl.where(x == best, at, vocab_size - 1), axis=0)


@triton.jit
def from_all(
    logits: tl.tensor,
    mass: tl.tensor,
    best: tl.tensor,
    scale: tl.tensor,
    at_random: tl.tensor,
    vocab_size: tl.tensor,
    TOPS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tl.tensor:
    """A draw from the whole vocabulary: a block by its mass, then a token of it."""
    block = tl.arange(0, TOPS)
    below = tl.cumsum(mass, axis=0)
    wanted = at_random * tl.max(below, axis=0)
    chosen = tl.sum((below <= wanted).to(tl.int32), axis=0)
    chosen = tl.minimum(chosen, tl.max(tl.where(mass > 0.0, block, 0), axis=0))
    ours = tl.sum(tl.where(block == chosen, mass, 0.0), axis=0)
    before = tl.sum(tl.where(block == chosen, below - mass, 0.0), axis=0)
    share = tl.minimum(tl.maximum((wanted - before) / ours, 0.0), 1.0)
    at = tl.arange(0, TOKENS)
    token = chosen * TOKENS + at
    x = tl.load(logits + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    weight = tl.exp((x - best) * scale).to(tl.float64)
    sums = tl.cumsum(weight, axis=0)
    place = tl.sum((sums <= share * tl.max(sums, axis=0)).to(tl.int32), axis=0)
    return chosen * TOKENS + tl.minimum(place, tl.max(tl.where(weight > 0.0, at, 0), axis=0))


@triton.jit
def collect(
    logits: tl.tensor,
    top: tl.tensor,
    least: tl.tensor,
    blocks: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    vocab_size: tl.tensor,
    num_blocks: tl.tensor,
    TOPS: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    LIMIT: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tensor:
    """How many tokens are no less than `least`; the first LIMIT go into `values` and `ids`."""
    block = tl.arange(0, TOPS)
    wanted = (key_of(top, BITS) >= least) & (block < num_blocks)
    number = tl.cumsum(wanted.to(tl.int32), axis=0) - 1
    tl.store(blocks + number, block, mask=wanted)
    count = tl.sum(wanted.to(tl.int32), axis=0)
    tl.debug_barrier()
    size = tl.zeros([], tl.int32)
    for start in range(0, count, TILE):
        which = start + tl.arange(0, TILE)
        first = tl.load(blocks + which, mask=which < count, other=num_blocks) * TOKENS
        at = tl.reshape(first[:, None] + tl.arange(0, TOKENS)[None, :], [TILE * TOKENS])
        x = tl.load(logits + at, mask=at < vocab_size, other=float("-inf")).to(tl.float32)
        fine = (key_of(x, BITS) >= least) & (x > float("-inf"))
        rank = size + tl.cumsum(fine.to(tl.int32), axis=0) - 1
        tl.store(values + rank, x, mask=fine & (rank < LIMIT))
        tl.store(ids + rank, at, mask=fine & (rank < LIMIT))
        size += tl.sum(fine.to(tl.int32), axis=0)
    tl.debug_barrier()
    return size


@triton.jit
def from_best(
    logits: tl.tensor,
    top: tl.tensor,
    blocks: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    mass: tl.tensor,
    best: tl.tensor,
    scale: tl.tensor,
    at_random: tl.tensor,
    k: tl.tensor,
    p: tl.tensor,
    least_share: tl.tensor,
    vocab_size: tl.tensor,
    num_blocks: tl.tensor,
    BEST: tl.constexpr,
    TOPS: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    DIGIT: tl.constexpr,
) -> tl.tensor:
    """A draw from the best tokens, or -1 if those that were looked at do not suffice."""
    cuts = (k > 0) & (k < vocab_size)
    least = tl.zeros([], tl.uint32)
    if num_blocks > BEST:
        # As many blocks as tokens may be kept have as many that are no worse than their worst top.
        target = tl.where(cuts, tl.minimum(k, BEST), BEST).to(tl.int32)
        keys = tl.where(tl.arange(0, TOPS) < num_blocks, key_of(top, BITS), 0)
        least = reach_count(keys, target, BITS)
    size = collect(
        logits,
        top,
        least,
        blocks,
        values,
        ids,
        vocab_size,
        num_blocks,
        TOPS,
        TOKENS,
        TILE,
        LIMIT,
        BITS,
    )
    at = tl.arange(0, LIMIT)
    x = tl.load(values + at, mask=at < size, other=float("-inf"))
    weight = tl.exp((x - best) * scale).to(tl.float64)
    lowest = tl.min(tl.where(at < size, weight, 1.0), axis=0)
    if cuts:
        held = (size >= k) | ((lowest < least_share) & (p >= 1.0))
    else:
        held = ((tl.sum(weight, axis=0) >= p * mass) & (p < 1.0)) | (lowest < least_share)
    held = (held | (num_blocks <= BEST)) & (size <= LIMIT)
    token = tl.zeros([], tl.int32) - 1
    if held:
        key, number = place_of(
            values, size, best, scale, mass, at_random, k, p, least_share, cuts, BITS, DIGIT, BLOCK
        )
        token = tl.load(ids + find(values, size, key, number, BITS, BLOCK))
    return token
