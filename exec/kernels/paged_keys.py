"""How kernels of attention find keys by block tables, and their reference; computes no attention
on a GPU.

Storage is one tensor [pages, layers, parts, V, P, D], so that a tile of keys of one head inside a
page is contiguous; tables [slots, columns] name the pages of a row in order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import INTERPRETED, AheadCase


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


def chunks_reference(
    q: torch.Tensor,
    storage: torch.Tensor,
    layer: int,
    tables: torch.Tensor,
    *,
    slots: torch.Tensor,
    starts: torch.Tensor,
    firsts: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int = 0,
    sinks: torch.Tensor | None = None,
    value_dim: int | None = None,
) -> torch.Tensor:
    """Attention [T, N, E] of chunks of rows, in float32; arguments as for `prefill_attention`.
    Zeros for tokens of no chunk."""
    out = q.new_zeros(*q.shape[:2], value_dim or q.shape[2], dtype=torch.float32)
    chunks = (slots.tolist(), starts.tolist(), firsts.tolist(), lengths.tolist())
    for slot, start, first, length in zip(*chunks, strict=True):
        if not length:
            continue
        kept = keys_and_values(storage, layer, tables[slot], start + length, value_dim)
        positions = torch.arange(start, start + length, device=q.device)
        tokens = slice(first, first + length)
        out[tokens] = attend_reference(q[tokens], positions, *kept, scale, window, sinks)
    return out


def keys_and_values(
    storage: torch.Tensor, layer: int, pages: torch.Tensor, context: int, value_dim: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `context` keys [V, S, D] and values [V, S, E] of a row, through its pages."""
    kept = storage[pages[: -(-context // storage.shape[4])].long(), layer]
    parts = kept.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context]
    return parts[0], parts[1] if value_dim is None else parts[0, ..., :value_dim]


@triton.jit
def load_pages(table, start, first, end, PAGE: tl.constexpr, TILE: tl.constexpr):
    """Pages of the keys of a tile from `first` to `end`: one, or one for each key."""
    if PAGE >= TILE:
        pages = tl.load(table + start // PAGE, mask=start < end, other=0)
    else:
        numbers = start + tl.arange(0, TILE)
        pages = tl.load(table + numbers // PAGE, mask=(numbers >= first) & (numbers < end), other=0)
    return pages


def paged_constants(
    num_heads: int,
    layout: tuple[int, int, int, int],
    value_dim: int | None,
    window: int = 0,
    has_sinks: bool = False,
) -> dict[str, Any]:
    """What both kernels know of a model when they are compiled. `layout`: parts, V, P and D."""
    parts, kv_heads, page, head_dim = layout
    dim = value_dim or head_dim
    return {
        "HEADS": num_heads,
        "KV_HEADS": kv_heads,
        "PARTS": parts,
        "PAGE": page,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": dim,
        "BLOCK_E": max(16, triton.next_power_of_2(dim)),
        "BLOCK_R": max(16, triton.next_power_of_2(head_dim - dim)) if head_dim > dim else 0,
        "WINDOW": window,
        "HAS_SINKS": has_sinks,
        "WIDEN": INTERPRETED,
    }


def search_block(count: int, most: int) -> int:
    """How many of `count` rows or chunks a search looks at together, at most `most`. Few sizes,
    because each is a compilation."""
    return next(size for size in (16, 128, most) if count <= size or size == most)


def check_layout(
    q: torch.Tensor,
    storage: torch.Tensor,
    tables: torch.Tensor,
    out: torch.Tensor,
    value_dim: int | None,
) -> None:
    """What the kernels take for granted."""
    _, _, parts, _, page, head_dim = storage.shape
    assert storage.is_contiguous()
    assert tables.is_contiguous()
    assert page & (page - 1) == 0
    assert (parts == 1) == (value_dim is not None)
    assert q.shape[2] == head_dim
    assert q.stride(2) == out.stride(2) == 1


def paged_case(
    name: str, kernel: Any, constants: dict[str, Any], tiles: dict[str, int], tensor_cores: bool
) -> AheadCase:
    """A kernel as it is launched on bfloat16 with `tiles`."""
    constants = constants | {size: n for size, n in tiles.items() if size.isupper()}
    types = {
        **dict.fromkeys(("q", "storage", "out"), "*bf16"),
        **dict.fromkeys(("sinks", "partials", "sums", "plan"), "*fp32"),
        **dict.fromkeys(("tables", "slots", "contexts", "starts", "firsts", "lengths"), "*i32"),
        **dict.fromkeys(constants, "constexpr"),
        "scale": "fp32",
    }
    return AheadCase(
        name=name,
        kernel=kernel,
        signature={
            name: types.get(name, "i32:16" if name.endswith("_stride") else "i32")
            for name in kernel.arg_names
        },
        constants=constants,
        num_warps=tiles["num_warps"],
        num_stages=tiles["num_stages"],
        tensor_cores=tensor_cores,
    )
