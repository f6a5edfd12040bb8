"""From logits to tokens on the device: greedy, or a seeded draw. Nothing is sorted, nobody waits.

*Idea.* One read of the logits leaves two numbers per block of 128 tokens: its maximum, and its
mass, relative to the maximum. With them a second launch, one program per row, finds the best token,
or draws:

- From the whole vocabulary by the inverse of the distribution in the order of the tokens: first a
  block by its mass, then a token of it.
- With top_k, top_p or min_p from the best tokens, the best first and of equals the lowest first. In
  this order each of the three keeps a *prefix*, so together they keep the shortest, and a draw is
  again a place in it. A prefix is a value v and how many tokens equal to v it has beside all above.
  Each such v is found by its bits (`prefix_search`). The tokens looked at are those no worse than
  the best of the k-th best block, k = BEST where top_k asks for more or for none; there are at
  least k, they are collected once, and every step of a search reads them from L1.
- Where these do not reach (top_p of a flat distribution), a third launch searches the whole row the
  same way. It has more threads, and its programs of other rows end at once.

The number of a row is a hash of its seed and of how many tokens it has drawn, that of
`exec.sampler.uniform`. Exponentials are float32, sums float64 in one order, which no batch changes:
a row's token depends on its logits, options, seed and counter alone. `exec.sampler` draws in the
same two orders and chooses the same tokens, up to the rounding of exponentials; only its rows of
the third kind are drawn in the order of the tokens (the distribution is the same).

*Bytes.* R V logits once; 8 / 128 of a byte per token beside that, and the blocks looked at. *FLOPs*
some 4 per logit, one exponential among them. *Floor* on an H200 (4.3 TB/s): 1024 rows of 151,936 in
bfloat16 are 311 MB, 72 us; the exponentials alone 35 us of all units that make them. A search takes
as many steps as a logit has bits, two at a time, three searches at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import (
    INTERPRETED,
    AheadCase,
    Capability,
    Work,
    capability,
    cases_by_capability,
    config,
)
from batchgen.exec.kernels.prefix_search import find, place_of, uniform
from batchgen.exec.kernels.row_draws import from_all, from_best, greedy_token

BLOCK_TOKENS = 128
KERNELS = ("tops", "choose", "search")
CANDIDATES = 2048  # that are collected of a row at most
LEAST_TEMPERATURE: tl.constexpr = tl.constexpr(1e-12)  # of job.sampling: below it a row is greedy
LEAST_SCALE: tl.constexpr = tl.constexpr(1.1754944e-38)  # float32's least that no unit takes for 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawColumns:
    """How rows draw, as columns [R] on the device: float64, but int64 `top_k` (0 is all), `seeds`
    (the bits of an unsigned number) and `counters`. A temperature of 0 is greedy."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor
    seeds: torch.Tensor
    counters: torch.Tensor


def sample_reference(
    logits: torch.Tensor, draws: DrawColumns | None, at_random: torch.Tensor
) -> torch.Tensor:
    """As `sample`, by sorting, with random numbers [R] given."""
    vocab_size = logits.shape[1]
    values, ids = logits.double().sort(dim=1, descending=True, stable=True)
    values = torch.where(logits.isnan().any(1, keepdim=True), torch.nan, values)
    best = values[:, :1]
    tokens = ids[:, 0].clone()
    for row in range(len(tokens)):
        if draws is None:
            break
        temperature, top_k = float(draws.temperature[row]), int(draws.top_k[row])
        top_p, min_p = float(draws.top_p[row]), float(draws.min_p[row])
        if temperature < 1e-12 or not bool(best[row].isfinite()):
            continue
        top_k = vocab_size if top_k == 0 else min(top_k, vocab_size)
        order = ids[row]
        if top_k == vocab_size and top_p == 1.0 and min_p == 0.0:
            order = torch.arange(vocab_size, device=order.device)
        weights = ((logits[row].double()[order] - best[row]) / temperature).exp()
        kept = weights[:top_k]
        before = kept.cumsum(0) - kept
        fine = (before < top_p * kept.sum()) & (kept >= min_p)
        fine[0] |= top_p < 1.0
        kept = torch.where(fine, kept, 0.0) if top_p < 1.0 or min_p > 0.0 else kept
        below = kept.cumsum(0)
        place = int((below <= at_random[row] * below[-1]).sum())
        tokens[row] = order[min(place, int(kept.nonzero().max()))]
    return torch.where(best[:, 0].isfinite(), tokens, vocab_size).to(torch.int32)


@triton.jit
def _temperature(temperature: tl.tensor, row: tl.tensor) -> tl.tensor:
    """Whether a row is drawn, and what its logits are multiplied by. Never 0: logits of -inf, and
    what is behind the vocabulary, would be NaN, and so the mass of their block."""
    heat = tl.load(temperature + row).to(tl.float64)
    drawn = heat >= LEAST_TEMPERATURE
    scale = (1.0 / tl.where(drawn, heat, 1.0)).to(tl.float32)
    return drawn, tl.maximum(scale, LEAST_SCALE)


@triton.jit(do_not_specialize=["num_blocks"])
def tops_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    tops: tl.tensor,
    masses: tl.tensor,
    stride: tl.tensor,
    vocab_size: tl.tensor,
    num_blocks: tl.tensor,
    BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr,
    DRAWS: tl.constexpr,
) -> None:
    """Maximum of each block, inf where a logit is NaN; DRAWS: its mass relative to it."""
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    token = block[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    x = tl.load(logits + row * stride + token, mask=token < vocab_size, other=float("-inf"))
    x = x.to(tl.float32)
    x = tl.where(x != x, float("inf"), x)
    top = tl.max(x, axis=1)
    at = row * num_blocks + block
    tl.store(tops + at, top, mask=block < num_blocks)
    if DRAWS:
        _, scale = _temperature(temperature, row)
        usable = (top > float("-inf")) & (top < float("inf"))
        behind = x - tl.where(usable, top, 0.0)[:, None]
        # Of a block without a finite maximum nothing is used.
        weight = tl.exp(tl.minimum(behind, 0.0) * scale)
        mass = tl.where(usable, tl.sum(weight, axis=1), 0.0)
        tl.store(masses + at, mass, mask=block < num_blocks)


@triton.jit(do_not_specialize=["num_blocks"])
def choose_kernel(
    logits: tl.tensor,
    tops: tl.tensor,
    masses: tl.tensor,
    temperature: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    top_k: tl.tensor,
    seeds: tl.tensor,
    counters: tl.tensor,
    blocks: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    out: tl.tensor,
    stride: tl.tensor,
    vocab_size: tl.tensor,
    num_blocks: tl.tensor,
    BEST: tl.constexpr,
    TOPS: tl.constexpr,  # a power of two, at least num_blocks
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,  # blocks collected at once
    LIMIT: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    DIGIT: tl.constexpr,
    DRAWS: tl.constexpr,
) -> None:
    """One program per row. A token of -1: the candidates do not suffice."""
    row = tl.program_id(0).to(tl.int64)
    ours = logits + row * stride
    block = tl.arange(0, TOPS)
    at = row * num_blocks + block
    top = tl.load(tops + at, mask=block < num_blocks, other=float("-inf"))
    best = tl.max(top, axis=0)
    token = tl.zeros([], tl.int32) + vocab_size
    if (best > float("-inf")) & (best < float("inf")):
        token = greedy_token(ours, top, best, vocab_size, TOPS, TOKENS)
        if DRAWS:
            drawn, scale = _temperature(temperature, row)
            if drawn:
                mass = tl.load(masses + at, mask=block < num_blocks, other=0.0)
                mass = (mass * tl.exp((top - best) * scale)).to(tl.float64)
                at_random = uniform(tl.load(seeds + row), tl.load(counters + row))
                k = tl.load(top_k + row)
                p = tl.load(top_p + row).to(tl.float64)
                least_share = tl.load(min_p + row).to(tl.float64)
                if ((k > 0) & (k < vocab_size)) | (p < 1.0) | (least_share > 0.0):
                    token = from_best(
                        ours,
                        top,
                        blocks + row * num_blocks,
                        values + row * LIMIT,
                        ids + row * LIMIT,
                        tl.sum(mass, axis=0),
                        best,
                        scale,
                        at_random,
                        k,
                        p,
                        least_share,
                        vocab_size,
                        num_blocks,
                        BEST,
                        TOPS,
                        TOKENS,
                        TILE,
                        LIMIT,
                        BLOCK,
                        BITS,
                        DIGIT,
                    )
                else:
                    token = from_all(ours, mass, best, scale, at_random, vocab_size, TOPS, TOKENS)
    tl.store(out + row, token)


@triton.jit(do_not_specialize=["num_blocks"])
def search_kernel(
    logits: tl.tensor,
    tops: tl.tensor,
    masses: tl.tensor,
    temperature: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    top_k: tl.tensor,
    seeds: tl.tensor,
    counters: tl.tensor,
    out: tl.tensor,
    stride: tl.tensor,
    vocab_size: tl.tensor,
    num_blocks: tl.tensor,
    TOPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
    DIGIT: tl.constexpr,
) -> None:
    """Rows of token -1, from the whole row."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(out + row) == -1:
        logits += row * stride
        block = tl.arange(0, TOPS)
        inside = block < num_blocks
        top = tl.load(tops + row * num_blocks + block, mask=inside, other=float("-inf"))
        best = tl.max(top, axis=0)
        _, scale = _temperature(temperature, row)
        mass = tl.load(masses + row * num_blocks + block, mask=inside, other=0.0)
        whole = tl.sum((mass * tl.exp((top - best) * scale)).to(tl.float64), axis=0)
        k = tl.load(top_k + row)
        key, number = place_of(
            logits,
            vocab_size,
            best,
            scale,
            whole,
            uniform(tl.load(seeds + row), tl.load(counters + row)),
            k,
            tl.load(top_p + row).to(tl.float64),
            tl.load(min_p + row).to(tl.float64),
            (k > 0) & (k < vocab_size),
            BITS,
            DIGIT,
            BLOCK,
        )
        tl.store(out + row, find(logits, vocab_size, key, number, BITS, BLOCK))


def sample(
    logits: torch.Tensor, draws: DrawColumns | None = None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Next tokens [R] int32 of `logits` [R, V] (bfloat16 or float32); `vocab_size` marks a row
    whose maximum is not finite. Without `draws` all rows are greedy: ties to the lowest token."""
    num_rows, vocab_size = logits.shape
    if out is None:
        out = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if not num_rows:
        return out
    num_blocks, draw = triton.cdiv(vocab_size, BLOCK_TOKENS), draws is not None
    first, second, third = _sizes(num_blocks, capability(logits.device), draws=draw)
    device, bits = logits.device, 16 if logits.dtype == torch.bfloat16 else 32
    tops = torch.empty((2, num_rows, num_blocks), dtype=torch.float32, device=device)
    columns: tuple[torch.Tensor, ...] = (out,) * 6  # nobody reads them
    if draws is not None:
        columns = (draws.temperature, draws.top_p, draws.min_p, draws.top_k)
        columns += (draws.seeds, draws.counters)
    kept = num_rows if draw else 0
    blocks = torch.empty((kept, num_blocks), dtype=torch.int32, device=device)
    values = torch.empty((kept, CANDIDATES), dtype=torch.float32, device=device)
    ids = torch.empty((kept, CANDIDATES), dtype=torch.int32, device=device)
    read = (logits, tops[0], tops[1], *columns)
    sizes = (logits.stride(0), vocab_size, num_blocks)
    grid = (triton.cdiv(num_blocks, first["BLOCKS"]), num_rows)
    tops_kernel[grid](logits, columns[0], tops[0], tops[1], *sizes, DRAWS=draw, **first)
    choose_kernel[(num_rows,)](
        *read, blocks, values, ids, out, *sizes, BITS=bits, DRAWS=draw, **second
    )
    if draw:
        search_kernel[(num_rows,)](*read, out, *sizes, BITS=bits, **third)
    return out


def _sizes(
    num_blocks: int, gpu: Capability, *, draws: bool
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Of the three kernels."""
    wide = max(128, triton.next_power_of_2(num_blocks))
    # Without `maxnreg` ptxas allots so few registers that it spills some.
    digit = 8 if INTERPRETED else 2  # an interpreter has to make few steps
    tops = {"BLOCKS": 32, "TOKENS": BLOCK_TOKENS, "num_warps": 4}
    choose = {"BEST": 128, "TOPS": wide, "TOKENS": BLOCK_TOKENS, "TILE": 8, "BLOCK": 128}
    choose |= {"LIMIT": CANDIDATES, "DIGIT": digit, "num_warps": 4, "maxnreg": 128}
    # Ampere's code of 4096 spills 16 bytes for all that.
    block = 4096 if gpu[0] in (9, 10) else 2048
    search = {"TOPS": wide, "BLOCK": block, "DIGIT": digit}
    search |= {"num_warps": 16, "maxnreg": 128}
    found = []
    for name, default in zip(KERNELS, (tops, choose, search), strict=True):
        found.append(config(f"sample_{name}", f"{wide}{'' if draws else '_greedy'}", default))
    return found[0], found[1], found[2]


def sample_work(num_rows: int, vocab_size: int, itemsize: int) -> Work:
    logits = float(num_rows * vocab_size)
    return Work(flops=4.0 * logits, bytes=logits * (itemsize + 16.0 / BLOCK_TOKENS))


_COLUMNS = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), "*fp64"),
    **dict.fromkeys(("top_k", "seeds", "counters"), "*i64"),
}


def _ahead(
    name: str, number: int, dtype: str, gpu: Capability, *, draws: bool, vocab_size: int
) -> AheadCase:
    kernel = (tops_kernel, choose_kernel, search_kernel)[number]
    sizes = _sizes(triton.cdiv(vocab_size, BLOCK_TOKENS), gpu, draws=draws)[number]
    constants: dict[str, Any] = {"BITS": 16 if dtype == "bf16" else 32, "DRAWS": draws, **sizes}
    warps, options = constants.pop("num_warps"), {}
    if "maxnreg" in constants:
        options["maxnreg"] = constants.pop("maxnreg")
    types = {"logits": f"*{dtype}", "tops": "*fp32", "masses": "*fp32", **_COLUMNS}
    types |= {"blocks": "*i32", "values": "*fp32", "ids": "*i32", "out": "*i32"}
    types |= {"stride": "i32", "vocab_size": "i32", "num_blocks": "i32"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    return AheadCase(
        name=f"sample_{name}",
        kernel=kernel,
        signature=signature,
        constants={name: value for name, value in constants.items() if name in signature},
        num_warps=warps,
        options=options,
    )


def _cases(number: int, dtype: str, *, draws: bool, vocab_size: int) -> tuple[AheadCase, ...]:
    name = f"{KERNELS[number]}_{vocab_size}_{dtype}{'' if draws else '_greedy'}"
    return cases_by_capability(
        lambda gpu: _ahead(name, number, dtype, gpu, draws=draws, vocab_size=vocab_size)
    )


AHEAD = tuple(
    case
    for number in range(len(KERNELS))
    for vocab_size in (1000, 32_000, 151_936, 262_144)
    for dtype in ("bf16", "fp32")
    for draws in (True, False)
    if (draws or number < 2) and (vocab_size == 151_936 or (draws and dtype == "bf16"))
    for case in _cases(number, dtype, draws=draws, vocab_size=vocab_size)
)
