"""Prefixes of a row's tokens, the best first, found without sorting: for kernels that sample.

*Idea.* A float32 has an integer, its key, that is ordered as it is; of bfloat16 numbers the upper
half of it does. The largest key such that all values no less than it weigh enough is found digit by
digit, the highest first: DIGIT bits per step, each step one read of the values, which stay in L1 or
L2. A prefix of the sorted row is then a key and how many of the values that have it belong to it.
top_k, top_p and min_p each keep a prefix, so together the shortest of them, and a draw is a place
in it. All weights are sums of the same float32 exponentials, in float64 and in one order.

Values are `size` numbers at a pointer, whether a few candidates or a whole row.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_of(x: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Unsigned integers in the order of float32 `x`; of bfloat16 the upper 16 bits do."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    key = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return key >> (32 - BITS)


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def uniform(seed: tl.tensor, counter: tl.tensor) -> tl.tensor:
    """As `exec.sampler.uniform`."""
    state = _mix(seed.to(tl.uint64, bitcast=True))
    state = _mix(state ^ counter.to(tl.uint64, bitcast=True))
    return (state >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def reach(
    values: tl.tensor,
    size: tl.tensor,
    best: tl.tensor,
    scale: tl.tensor,
    target: tl.tensor,
    COUNT: tl.constexpr,
    STRICT: tl.constexpr,
    BITS: tl.constexpr,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The largest key such that the `size` values no less than it weigh at least `target`
    (STRICT: more); 0 if all do not. COUNT: each weighs 1."""
    WAYS: tl.constexpr = 1 << DIGIT
    found = tl.zeros([], tl.uint32)
    for step in range(BITS // DIGIT):
        shift = BITS - DIGIT * (step + 1)
        tries = found | (tl.arange(0, WAYS).to(tl.uint32) << shift)
        total = tl.zeros([WAYS], tl.float64)
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(values + at, mask=at < size, other=float("-inf")).to(tl.float32)
            key = key_of(x, BITS)
            if COUNT:
                weight = tl.where(at < size, 1.0, 0.0).to(tl.float64)
            else:
                weight = tl.exp((x - best) * scale).to(tl.float64)
            total += tl.sum(tl.where(key[None, :] >= tries[:, None], weight[None, :], 0.0), axis=1)
        enough = total > target if STRICT else total >= target
        digit = tl.maximum(tl.sum(enough.to(tl.int32), axis=0) - 1, 0)
        found = found | (digit.to(tl.uint32) << shift)
    return found


@triton.jit
def reach_count(keys: tl.tensor, target: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The largest key such that at least `target` of `keys`, which registers hold, are no less; 0
    if there are fewer. A bit per step: a step is one sum, and reads nothing."""
    found = tl.zeros([], tl.uint32)
    for step in range(BITS):
        tried = found | (tl.full([], 1, tl.uint32) << (BITS - 1 - step))
        count = tl.sum((keys >= tried).to(tl.int32), axis=0)
        found = tl.where(count >= target, tried, found)
    return found


@triton.jit
def around(
    values: tl.tensor,
    size: tl.tensor,
    best: tl.tensor,
    scale: tl.tensor,
    value: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Of the key `value`: count and mass of what is above it, count of what equals it and the
    weight of one of these."""
    above = tl.zeros([BLOCK], tl.int32)
    equal = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([], tl.float64)
    one = tl.zeros([], tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(values + at, mask=at < size, other=float("-inf")).to(tl.float32)
        key = key_of(x, BITS)
        weight = tl.exp((x - best) * scale)
        above += ((key > value) & (at < size)).to(tl.int32)
        same = (key == value) & (at < size)
        equal += same.to(tl.int32)
        mass += tl.sum(tl.where(key > value, weight.to(tl.float64), 0.0), axis=0)
        one = tl.maximum(one, tl.max(tl.where(same, weight, 0.0), axis=0))
    return tl.sum(above, axis=0), mass, tl.sum(equal, axis=0), one.to(tl.float64)


@triton.jit
def _shorter(
    value: tl.tensor, ties: tl.tensor, other: tl.tensor, other_ties: tl.tensor
) -> tl.tensor:
    """The shorter of two prefixes."""
    less = (other > value) | ((other == value) & (other_ties < ties))
    return tl.where(less, other, value), tl.where(less, other_ties, ties)


@triton.jit
def place_of(
    values: tl.tensor,
    size: tl.tensor,
    best: tl.tensor,
    scale: tl.tensor,
    mass: tl.tensor,  # of the whole vocabulary
    at_random: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    cuts: tl.tensor,  # whether top_k is less than the vocabulary
    BITS: tl.constexpr,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The key of the token that a row draws, and which of those that have it."""
    ALL: tl.constexpr = 1 << 30
    value = tl.zeros([], tl.uint32)
    ties = tl.zeros([], tl.int32) + ALL
    if cuts:
        value = reach(
            values, size, best, scale, top_k.to(tl.float64), True, False, BITS, DIGIT, BLOCK
        )
        above, below, equal, one = around(values, size, best, scale, value, BITS, BLOCK)
        ties = tl.minimum(top_k - above, ALL).to(tl.int32)
        mass = below + ties.to(tl.float64) * one
    if top_p < 1.0:
        limit = top_p * mass
        other = reach(values, size, best, scale, limit, False, False, BITS, DIGIT, BLOCK)
        above, below, equal, one = around(values, size, best, scale, other, BITS, BLOCK)
        count = tl.ceil((limit - below) / tl.where(one > 0.0, one, 1.0))
        count = tl.minimum(tl.maximum(count, 1.0), equal.to(tl.float64)).to(tl.int32)
        value, ties = _shorter(value, ties, other, count)
    if min_p > 0.0:
        lowest = tl.zeros([], tl.uint32) + 0xFFFFFFFF
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(values + at, mask=at < size, other=float("-inf")).to(tl.float32)
            fine = (tl.exp((x - best) * scale).to(tl.float64) >= min_p) & (at < size)
            keys = tl.where(fine, key_of(x, BITS), 0xFFFFFFFF)
            lowest = tl.minimum(lowest, tl.min(keys, axis=0))
        value, ties = _shorter(value, ties, lowest, tl.zeros([], tl.int32) + ALL)
    above, below, equal, one = around(values, size, best, scale, value, BITS, BLOCK)
    ties = tl.minimum(ties, equal)
    goal = at_random * (below + ties.to(tl.float64) * one)
    drawn = reach(values, size, best, scale, goal, False, True, BITS, DIGIT, BLOCK)
    drawn = tl.maximum(drawn, value)
    above, below, equal, one = around(values, size, best, scale, drawn, BITS, BLOCK)
    ties = tl.where(drawn == value, ties, equal)
    number = tl.floor((goal - below) / tl.where(one > 0.0, one, 1.0))
    number = tl.maximum(tl.minimum(number, (ties - 1).to(tl.float64)), 0.0)
    return drawn, number.to(tl.int32)


@triton.jit
def find(
    values: tl.tensor,
    size: tl.tensor,
    key: tl.tensor,
    number: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Where among `values` the one lies that is the `number`-th of this key."""
    place = tl.zeros([], tl.int32)
    seen = tl.zeros([], tl.int32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(values + at, mask=at < size, other=float("-inf")).to(tl.float32)
        same = ((key_of(x, BITS) == key) & (at < size)).to(tl.int32)
        rank = seen + tl.cumsum(same, axis=0) - 1
        place += tl.sum(tl.where((same != 0) & (rank == number), at, 0), axis=0)
        seen += tl.sum(same, axis=0)
    return place
