"""Sorts (token, expert) pairs into runs of one expert, padded to whole blocks of rows; no host.

Idea. Products with experts' weights take blocks of BLOCK_M rows, all of one expert. Pair p belongs
to token p // k. Its place is the start of its expert's run, which begins at a multiple of BLOCK_M,
plus the number of earlier pairs of that expert: a counting sort, stable, without atomics, so that
the same choice always gives the same order. Nobody knows how many blocks there are until the
device has counted, so the space is for the most there can be, and blocks beyond the end say -1.

Up to 2,048 pairs, one launch: a program per expert reads all pairs (8 KiB, from L2), counts all
experts to know where its run starts, and its own pairs by a prefix sum. More pairs, two: programs
count their chunk and fill the space with padding; then each adds the counts of all chunks, which
gives the runs, and those before its own, and places its pairs.

Bytes: pairs are read and written once, 8 * T * k, and 4 * E per chunk. Floor at 4.3 TB/s for
16,384 tokens, k 8: 1.2 MB, 0.3 us; in truth the launches. 2 us per launch is the aim.
"""

# Parameters of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work, config


class Groups(NamedTuple):
    """What `group_rows` gives, all int32. `pairs`: pair numbers by block, `num_pairs` where a block
    is padded; what lies beyond the last block is not defined. `block_experts`: the expert of every
    block, -1 beyond the end. `counts`: pairs of every expert."""

    pairs: torch.Tensor
    block_experts: torch.Tensor
    counts: torch.Tensor


def most_blocks(num_pairs: int, num_experts: int, block_rows: int) -> int:
    """Blocks that `num_pairs` fill at most, however they are spread over the experts."""
    padding = min(num_pairs, num_experts) * (block_rows - 1)
    return min(num_pairs, (num_pairs + padding) // block_rows)


def group_rows_reference(chosen: torch.Tensor, num_experts: int, block_rows: int) -> Groups:
    """The same in torch, waiting for the device; also pads beyond the end."""
    owners = chosen.flatten().long()
    num_blocks = most_blocks(len(owners), num_experts, block_rows)
    counts = torch.bincount(owners, minlength=num_experts)
    pairs = torch.full((num_blocks * block_rows,), len(owners), device=chosen.device)
    experts = torch.full((num_blocks,), -1, device=chosen.device)
    block = 0
    for expert in range(num_experts):
        mine = (owners == expert).nonzero()[:, 0]
        pairs[block * block_rows : block * block_rows + len(mine)] = mine
        blocks = -(-len(mine) // block_rows)
        experts[block : block + blocks] = expert
        block += blocks
    return Groups(pairs.int(), experts.int(), counts.int())


# A chunk's program does at least so much, needed or not: each size is a compilation.
LEAST_FILL, LEAST_BLOCKS = 8, 32


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def _group_at_once(
    chosen,
    pairs,
    block_experts,
    counts,
    num_pairs,
    num_blocks,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAIRS_PADDED: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
):
    """A program per expert. Every run is written by its expert; the end by the last one."""
    me = tl.program_id(0)
    pair = tl.arange(0, PAIRS_PADDED)
    live = pair < num_pairs
    owner = tl.load(chosen + pair, mask=live, other=0)
    number = tl.arange(0, EXPERTS)
    count = tl.histogram(owner, EXPERTS, mask=live)
    padded = (count + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    start = tl.sum(tl.where(number < me, padded, 0), 0)
    my_count = tl.sum(tl.where(number == me, count, 0), 0)
    my_blocks = (my_count + BLOCK_M - 1) // BLOCK_M
    mine = live & (owner == me)
    place = start + tl.cumsum(mine.to(tl.int32), 0) - 1
    tl.store(pairs + place, pair, mask=mine)
    rest = my_count + tl.arange(0, BLOCK_M)
    padding = tl.zeros([BLOCK_M], tl.int32) + num_pairs
    tl.store(pairs + start + rest, padding, mask=rest < my_blocks * BLOCK_M)
    tl.store(counts + me, my_count)
    block = tl.arange(0, BLOCKS_PADDED)
    first = start // BLOCK_M
    mine_too = (block >= first) & (block < first + my_blocks)
    tl.store(block_experts + block, tl.zeros([BLOCKS_PADDED], tl.int32) + me, mask=mine_too)
    if me == tl.num_programs(0) - 1:
        beyond = (block >= first + my_blocks) & (block < num_blocks)
        tl.store(block_experts + block, tl.full([BLOCKS_PADDED], -1, tl.int32), mask=beyond)


@triton.jit(do_not_specialize=["num_pairs", "num_places"])
def _count_chunk(
    chosen,
    pairs,
    chunk_counts,
    num_pairs,
    num_places,
    EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
    FILL: tl.constexpr,  # places per program, in pieces of CHUNK
):
    chunk = tl.program_id(0)
    inside = tl.arange(0, CHUNK)
    pair = chunk * CHUNK + inside
    live = pair < num_pairs
    owner = tl.load(chosen + pair, mask=live, other=0)
    count = tl.histogram(owner, EXPERTS, mask=live)
    tl.store(chunk_counts + chunk * EXPERTS + tl.arange(0, EXPERTS), count)
    padding = tl.zeros([CHUNK], tl.int32) + num_pairs
    for piece in tl.static_range(FILL):
        place = (chunk * FILL + piece) * CHUNK + inside
        tl.store(pairs + place, padding, mask=place < num_places)


@triton.jit(do_not_specialize=["num_pairs", "num_blocks", "num_experts", "num_chunks"])
def _place_chunk(
    chosen,
    pairs,
    block_experts,
    counts,
    chunk_counts,
    num_pairs,
    num_blocks,
    num_experts,
    num_chunks,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    SUB: tl.constexpr,  # pairs placed at once
    ROWS: tl.constexpr,  # chunks added at once
    BLOCKS: tl.constexpr,  # blocks whose expert a program says
):
    chunk = tl.program_id(0)
    number = tl.arange(0, EXPERTS)
    count = tl.zeros([EXPERTS], tl.int32)
    before = tl.zeros([EXPERTS], tl.int32)
    for first in range(0, num_chunks, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        at = chunk_counts + row * EXPERTS + number[None, :]
        some = tl.load(at, mask=row < num_chunks, other=0)
        count += tl.sum(some, 0)
        before += tl.sum(tl.where(row < chunk, some, 0), 0)
    padded = (count + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    end = tl.cumsum(padded, 0)
    if chunk == 0:
        tl.store(counts + number, count, mask=number < num_experts)
    block = chunk * BLOCKS + tl.arange(0, BLOCKS)
    # The expert of a block is the number of runs that end before it.
    expert = tl.sum((end[None, :] <= block[:, None] * BLOCK_M).to(tl.int32), 1)
    expert = tl.where(block * BLOCK_M < tl.max(end, 0), expert, -1)
    tl.store(block_experts + block, expert, mask=block < num_blocks)

    next_place = end - padded + before
    for first in range(0, CHUNK, SUB):
        pair = chunk * CHUNK + first + tl.arange(0, SUB)
        live = pair < num_pairs
        owner = tl.load(chosen + pair, mask=live, other=-1)
        one = (owner[:, None] == number[None, :]).to(tl.int32)
        place = next_place[None, :] + tl.cumsum(one, 0) - 1
        tl.store(pairs + tl.sum(one * place, 1), pair, mask=live)
        next_place += tl.sum(one, 0)


def new_groups(num_pairs: int, num_experts: int, block_rows: int, device: torch.device) -> Groups:
    """Space for the groups of `num_pairs` pairs."""
    num_blocks = most_blocks(num_pairs, num_experts, block_rows)
    sizes = (num_blocks * block_rows, num_blocks, num_experts)
    return Groups(*(torch.empty(n, dtype=torch.int32, device=device) for n in sizes))


def group_rows(
    chosen: torch.Tensor, num_experts: int, block_rows: int, *, out: Groups | None = None
) -> Groups:
    """Pairs of `chosen` ([T, k] int32, contiguous, in [0, num_experts)) by expert, in the order of
    tokens, in blocks of `block_rows`, a power of two. `out` may be longer than needed; views of it
    are returned."""
    assert chosen.is_contiguous()
    assert chosen.dtype == torch.int32
    num_pairs = chosen.numel()
    num_blocks = most_blocks(num_pairs, num_experts, block_rows)
    if out is None:
        out = new_groups(num_pairs, num_experts, block_rows, chosen.device)
    assert len(out.pairs) >= num_blocks * block_rows
    assert len(out.block_experts) >= num_blocks
    assert len(out.counts) == num_experts
    out = Groups(out.pairs[: num_blocks * block_rows], out.block_experts[:num_blocks], out.counts)
    if num_pairs == 0:
        out.counts.zero_()
        return out
    tile = config("group_rows", "any", {"AT_ONCE": 2048, "CHUNK": 256, "CHUNKS": 128, "SUB": 8192})
    padded = max(triton.next_power_of_2(num_experts), 16)
    if num_pairs <= tile["AT_ONCE"]:
        _group_at_once[(num_experts,)](
            chosen,
            *out,
            num_pairs,
            num_blocks,
            EXPERTS=padded,
            BLOCK_M=block_rows,
            PAIRS_PADDED=max(triton.next_power_of_2(num_pairs), 128),
            BLOCKS_PADDED=triton.next_power_of_2(num_blocks),
            num_warps=4,
        )
        return out
    chunk = max(tile["CHUNK"], triton.next_power_of_2(triton.cdiv(num_pairs, tile["CHUNKS"])))
    num_chunks = triton.cdiv(num_pairs, chunk)
    chunk_counts = torch.empty(num_chunks, padded, dtype=torch.int32, device=chosen.device)
    per_program = num_chunks * chunk
    _count_chunk[(num_chunks,)](
        chosen,
        out.pairs,
        chunk_counts,
        num_pairs,
        len(out.pairs),
        EXPERTS=padded,
        CHUNK=chunk,
        FILL=max(triton.next_power_of_2(triton.cdiv(len(out.pairs), per_program)), LEAST_FILL),
        num_warps=4,
    )
    _place_chunk[(num_chunks,)](
        chosen,
        *out,
        chunk_counts,
        num_pairs,
        num_blocks,
        num_experts,
        num_chunks,
        EXPERTS=padded,
        BLOCK_M=block_rows,
        CHUNK=chunk,
        SUB=min(max(tile["SUB"] // padded, 16), chunk),
        ROWS=16,
        BLOCKS=max(triton.next_power_of_2(triton.cdiv(num_blocks, num_chunks)), LEAST_BLOCKS),
        num_warps=4,
    )
    return out


def group_rows_work(num_pairs: int) -> Work:
    """Bytes of the pairs, read and written."""
    return Work(0.0, 8.0 * num_pairs)


def _ahead(name: str, kernel: Any, pointers: str, numbers: str, **constants: int) -> AheadCase:
    signature = {
        **dict.fromkeys(pointers.split(), "*i32"),
        **dict.fromkeys(numbers.split(), "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    return AheadCase(name=name, kernel=kernel, signature=signature, constants=constants)


_OUT = "pairs block_experts counts"
AHEAD = (
    *(
        _ahead(
            f"E{experts} of {pairs} pairs",
            _group_at_once,
            f"chosen {_OUT}",
            "num_pairs num_blocks",
            EXPERTS=max(experts, 16),
            BLOCK_M=block_rows,
            PAIRS_PADDED=pairs,
            BLOCKS_PADDED=triton.next_power_of_2(most_blocks(pairs, experts, block_rows)),
        )
        for experts, pairs, block_rows in ((128, 2048, 32), (8, 128, 16), (256, 2048, 16))
    ),
    _ahead(
        "counts of a chunk",
        _count_chunk,
        "chosen pairs chunk_counts",
        "num_pairs num_places",
        EXPERTS=128,
        CHUNK=1024,
        FILL=2,
    ),
    *(
        _ahead(
            f"places of a chunk, E{experts}",
            _place_chunk,
            f"chosen {_OUT} chunk_counts",
            "num_pairs num_blocks num_experts num_chunks",
            EXPERTS=experts,
            BLOCK_M=128,
            CHUNK=1024,
            SUB=8192 // experts,
            ROWS=16,
            BLOCKS=16,
        )
        for experts in (128, 256)
    ),
)
