"""Arenas of random KV, passes over them, and what attention should give, in float64."""

from __future__ import annotations

from typing import Any

import torch
from model_cases import Segment, pass_rows

from batchgen.exec.arena import KvArena
from batchgen.exec.attention import Backend, Heads
from batchgen.exec.config import KvLayout

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
# One rounding of the result, and one of each weight of values of about one.
BFLOAT16 = {"atol": 4e-3, "rtol": 2**-7}


def arena(
    page_tokens: int,
    segments: list[Segment],
    *,
    kv_heads: int = KV_HEADS,
    head_dim: int = HEAD_DIM,
    parts: int = 2,
    dtype: torch.dtype = torch.float32,
) -> KvArena:
    """An arena of random KV with pages for these segments, handed out in another order."""
    pages = sum(-(-(start + n) // page_tokens) for _, start, n in segments)
    layout = KvLayout(layers=2, parts=parts, heads=kv_heads, head_dim=head_dim)
    kv = KvArena("hbm", pages, layout, page_tokens=page_tokens, dtype=dtype)
    kv.storage.normal_(generator=torch.Generator().manual_seed(0))
    for slot, start, length in reversed(segments):
        kv.reserve(slot, start + length)
    return kv


def queries(count: int, heads: int = HEADS, head_dim: int = HEAD_DIM, seed: int = 1) -> Any:
    return torch.randn(count, heads, head_dim, generator=torch.Generator().manual_seed(seed))


def attend(
    one: Backend,
    kv: KvArena,
    layer: int,
    q: torch.Tensor,
    decodes: list[Segment],
    chunks: list[Segment],
    heads: Heads,
) -> torch.Tensor:
    rows = pass_rows([*decodes, *chunks], len(decodes), [0] * len(q))
    return one.run(kv, layer, q, one.prepare(kv, rows), heads)


def textbook(
    kv: KvArena, layer: int, slot: int, position: int, q: torch.Tensor, how: Heads
) -> torch.Tensor:
    """One query over the positions that it sees, head by head, in float64."""
    pages = torch.tensor(kv.tables.of(slot))
    first = max(0, position + 1 - how.window) if how.window else 0
    parts = [
        kv.storage[pages, layer, which].transpose(1, 2).flatten(0, 1)[first : position + 1].double()
        for which in range(kv.layout.parts)
    ]
    keys, values = parts[0], parts[-1][..., : how.value_dim]
    found = []
    for head in range(len(q)):
        shared = head // (len(q) // kv.layout.heads)
        scores = keys[:, shared] @ q[head].double() * how.scale
        if how.sinks is not None:
            scores = torch.cat((scores, how.sinks[head : head + 1].double()))
        weights = torch.softmax(scores, 0)[: len(keys)]
        found.append(weights @ values[:, shared])
    return torch.stack(found).float()


def expected(
    kv: KvArena, layer: int, segments: list[Segment], q: torch.Tensor, how: Heads
) -> torch.Tensor:
    places = [(slot, start + i) for slot, start, n in segments for i in range(n)]
    return torch.stack([textbook(kv, layer, *place, q[i], how) for i, place in enumerate(places)])
