"""Paged attention: equal to the textbook, and bitwise the same for a row in whatever batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec.arena import KvArena
from batchgen.exec.attention import decode_attention, paged_attention
from batchgen.exec.batch import MAX_PADDING, Segment, build_batch

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


def arena(page_tokens: int, pages: int) -> KvArena:
    result = KvArena(
        "hbm",
        pages,
        num_layers=2,
        num_kv_heads=KV_HEADS,
        page_tokens=page_tokens,
        head_dim=HEAD_DIM,
        dtype=torch.float32,
    )
    result.storage.normal_(generator=torch.Generator().manual_seed(0))
    return result


def textbook(kv: KvArena, layer: int, slot: int, position: int, q: torch.Tensor) -> torch.Tensor:
    """One query over positions 0 to `position`, head by head, in float64."""
    pages = torch.tensor(kv.tables.of(slot))
    keys, values = (
        kv.storage[pages, layer, which].transpose(1, 2).flatten(0, 1)[: position + 1].double()
        for which in (0, 1)
    )
    heads = []
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        scores = keys[:, shared] @ q[head].double() / HEAD_DIM**0.5
        heads.append(torch.softmax(scores, 0) @ values[:, shared])
    return torch.stack(heads).float()


pieces = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=5)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 50), max_size=5), pieces, st.sampled_from([1, 4, 16]))
def test_a_mixed_pass_equals_the_textbook(
    decode_starts: list[int], chunk_parts: list[tuple[int, int]], page_tokens: int
) -> None:
    decodes = [Segment(slot=i, start=s, length=1) for i, s in enumerate(decode_starts)]
    chunks = [
        Segment(slot=len(decodes) + i, start=s, length=n) for i, (s, n) in enumerate(chunk_parts)
    ]
    segments = [*decodes, *chunks]
    if not segments:
        return
    kv = arena(page_tokens, sum(-(-(s.start + s.length) // page_tokens) for s in segments))
    for s in segments:
        kv.reserve(s.slot, s.start + s.length)
    count = sum(s.length for s in segments)
    batch = build_batch(kv, np.zeros(count, dtype=np.int64), decodes, chunks)
    q = torch.randn(count, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    got = paged_attention(kv, 1, q, batch)
    places = [(s.slot, s.start + i) for s in segments for i in range(s.length)]
    expected = torch.stack([textbook(kv, 1, *place, q[i]) for i, place in enumerate(places)])
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    for group in batch.chunks:
        work = group.mask.shape[2] * group.mask.shape[3]
        assert len(group.pages) == 1 or work * len(group.pages) <= MAX_PADDING * sum(
            c.length * (c.start + c.length + page_tokens) for c in chunks
        )


@pytest.mark.parametrize("page_tokens", [8, 16, 64])
def test_a_decoding_row_is_bitwise_the_same_in_every_batch(page_tokens: int) -> None:
    generator = np.random.default_rng(0)
    contexts = generator.integers(1, 12 * page_tokens, 64).tolist()
    kv = arena(page_tokens, sum(-(-c // page_tokens) for c in contexts))
    segments = [Segment(slot=slot, start=c - 1, length=1) for slot, c in enumerate(contexts)]
    for s in segments:
        kv.reserve(s.slot, s.start + 1)
    q = torch.randn(64, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(2))

    def run(begin: int, end: int) -> torch.Tensor:
        zeros = np.zeros(end - begin, dtype=np.int64)
        pairs = build_batch(kv, zeros, segments[begin:end], []).decode
        assert pairs is not None
        return decode_attention(kv, 0, q[begin:end], pairs)

    whole = run(0, 64)
    for size in (1, 2, 3, 7, 33):
        for begin in range(0, 64 - size, 9):
            assert torch.equal(run(begin, begin + size), whole[begin : begin + size])
