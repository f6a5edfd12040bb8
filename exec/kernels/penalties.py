"""What rows ask to be changed in their logits, in place: bias, penalties, no end yet.

*Idea.* A row that asks for something changes a few of its logits: those of tokens it has, those of
its bias, and those that would end it. One program per such row changes them one after the other,
with a barrier between, since a token may be in more than one list. Lists are padded with -1 and
name no token twice. What rows have is kept by whoever calls, but for the token that the pass before
has produced and nobody on the host knows yet: it is looked up where that pass left it, and counts.

*Rounding and order* are those of `exec.adjust`: the bias is added first and rounded; penalties are
computed in float64 and rounded; tokens that would end the row get -inf last.

*Bytes.* Some 12 per token of a list, of which a cache line is read per logit: a thousand tokens of
256 rows are 8 MB, 2 us. Its launch is the cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work

BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What A rows ask for. Lists are int32, padded with -1.

    `rows` [A]: which rows of the logits, -1 for none. `seen` [A, W]: their tokens, prompts
    included, and `produced` [A, W]: how often each was produced. `repetition`, `frequency` and
    `presence` [A] float64 (1, 0 and 0 change nothing). `biased` [A, B] with `bias` [A, B] float32.
    `stops` [A, S]: tokens that may not come now. `newest` [A]: the place in `last` of a token that
    was produced beside those counted, -1 for none.
    """

    rows: torch.Tensor
    seen: torch.Tensor
    produced: torch.Tensor
    repetition: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor
    biased: torch.Tensor
    bias: torch.Tensor
    stops: torch.Tensor
    last: torch.Tensor
    newest: torch.Tensor


def apply_penalties_reference(logits: torch.Tensor, changes: Changes) -> None:
    """As `apply_penalties`."""
    for number, row in enumerate(changes.rows.tolist()):
        if row < 0:
            continue
        ours = logits[row]
        some = changes.biased[number] >= 0
        ids = changes.biased[number][some].long()
        ours[ids] = (ours[ids].float() + changes.bias[number][some]).to(ours.dtype)
        some = changes.seen[number] >= 0
        ids, times = changes.seen[number][some].long(), changes.produced[number][some]
        if changes.newest[number] >= 0:
            fresh = changes.last[changes.newest[number].long()].long()[None]
            times = times + (ids == fresh)
            if not (ids == fresh).any():
                ids, times = torch.cat((ids, fresh)), torch.cat((times, torch.ones_like(fresh)))
        values, penalty = ours[ids].double(), changes.repetition[number]
        values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - changes.frequency[number] * times - changes.presence[number] * (times > 0)
        ours[ids] = values.to(ours.dtype)
        ids = changes.stops[number][changes.stops[number] >= 0].long()
        ours[ids] = float("-inf")


@triton.jit
def _penalised(
    x: tl.tensor, times: tl.tensor, penalty: tl.tensor, each: tl.tensor, once: tl.tensor
) -> tl.tensor:
    x = x.to(tl.float64)
    x = tl.where(x > 0.0, x / penalty, x * penalty)
    x -= each * times.to(tl.float64) + tl.where(times > 0, once, 0.0)
    return x.to(tl.float32)


@triton.jit(do_not_specialize=["num_seen", "num_biased", "num_stops"])
def penalties_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    seen: tl.tensor,
    produced: tl.tensor,
    repetition: tl.tensor,
    frequency: tl.tensor,
    presence: tl.tensor,
    biased: tl.tensor,
    bias: tl.tensor,
    stops: tl.tensor,
    last: tl.tensor,
    newest: tl.tensor,
    stride: tl.tensor,
    num_seen: tl.tensor,
    num_biased: tl.tensor,
    num_stops: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program per row that asks."""
    number = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + number)
    dtype: tl.constexpr = logits.dtype.element_ty
    if row >= 0:
        ours = logits + row.to(tl.int64) * stride
        for start in range(0, num_biased, BLOCK):
            at = start + tl.arange(0, BLOCK)
            here = number * num_biased + at
            token = tl.load(biased + here, mask=at < num_biased, other=-1)
            more = tl.load(bias + here, mask=at < num_biased, other=0.0)
            x = tl.load(ours + token, mask=token >= 0, other=0.0).to(tl.float32)
            tl.store(ours + token, (x + more).to(dtype), mask=token >= 0)
        tl.debug_barrier()
        penalty = tl.load(repetition + number)
        each, once = tl.load(frequency + number), tl.load(presence + number)
        place = tl.load(newest + number)
        fresh = tl.load(last + place, mask=place >= 0, other=-1).to(tl.int32)
        known = tl.zeros([], tl.int32)
        for start in range(0, num_seen, BLOCK):
            at = start + tl.arange(0, BLOCK)
            here = number * num_seen + at
            token = tl.load(seen + here, mask=at < num_seen, other=-1)
            times = tl.load(produced + here, mask=at < num_seen, other=0)
            same = ((token == fresh) & (token >= 0)).to(tl.int32)
            known += tl.sum(same, axis=0)
            x = tl.load(ours + token, mask=token >= 0, other=0.0)
            x = _penalised(x, times + same, penalty, each, once)
            tl.store(ours + token, x.to(dtype), mask=token >= 0)
        if (fresh >= 0) & (known == 0):
            x = tl.load(ours + fresh)
            tl.store(ours + fresh, _penalised(x, known + 1, penalty, each, once).to(dtype))
        tl.debug_barrier()
        for start in range(0, num_stops, BLOCK):
            at = start + tl.arange(0, BLOCK)
            token = tl.load(stops + number * num_stops + at, mask=at < num_stops, other=-1)
            tl.store(ours + token, tl.full([BLOCK], float("-inf"), dtype), mask=token >= 0)


def apply_penalties(logits: torch.Tensor, changes: Changes) -> None:
    """Change `logits` [R, V] in place."""
    if not len(changes.rows):
        return
    lists = (changes.seen, changes.produced, changes.biased, changes.bias, changes.stops)
    assert all(x.is_contiguous() for x in lists)
    penalties_kernel[(len(changes.rows),)](
        logits,
        changes.rows,
        changes.seen,
        changes.produced,
        changes.repetition,
        changes.frequency,
        changes.presence,
        changes.biased,
        changes.bias,
        changes.stops,
        changes.last,
        changes.newest,
        logits.stride(0),
        changes.seen.shape[1],
        changes.biased.shape[1],
        changes.stops.shape[1],
        BLOCK=BLOCK,
        num_warps=4,
    )


def penalties_work(num_rows: int, num_seen: int) -> Work:
    """A sector of 32 bytes read and written per logit, and the lists."""
    return Work(flops=6.0 * num_rows * num_seen, bytes=72.0 * num_rows * num_seen)


def _ahead(dtype: str) -> AheadCase:
    signature = {"logits": f"*{dtype}"}
    lists = ("rows", "seen", "produced", "biased", "stops", "last", "newest")
    signature |= dict.fromkeys(lists, "*i32")
    signature |= dict.fromkeys(("repetition", "frequency", "presence"), "*fp64")
    signature |= {"bias": "*fp32", "BLOCK": "constexpr"}
    signature |= dict.fromkeys(("stride", "num_seen", "num_biased", "num_stops"), "i32")
    return AheadCase(
        name=f"penalties_{dtype}",
        kernel=penalties_kernel,
        signature=signature,
        constants={"BLOCK": BLOCK},
    )


AHEAD = (_ahead("bf16"), _ahead("fp32"))
