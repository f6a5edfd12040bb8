"""Paged attention: equal to the textbook, and bitwise the same for a row in whatever batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec import compiled
from batchgen.exec.arena import KvArena
from batchgen.exec.attention import decode_attention, paged_attention
from batchgen.exec.batch import MAX_PADDING, Segment, build_batch
from batchgen.exec.compiled import is_compiled

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
needs_compiler = pytest.mark.skipif(
    not is_compiled(torch.float32, HEADS // KV_HEADS), reason="no C++ compiler here"
)
either = pytest.mark.parametrize(
    "by_compiler", [pytest.param(True, marks=needs_compiler, id="compiled"), False]
)


def arena(
    page_tokens: int, pages: int, head_dim: int = HEAD_DIM, dtype: torch.dtype = torch.float32
) -> KvArena:
    result = KvArena(
        "hbm",
        pages,
        num_layers=2,
        num_kv_heads=KV_HEADS,
        page_tokens=page_tokens,
        head_dim=head_dim,
        dtype=dtype,
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
    for head in range(len(q)):
        shared = head // (len(q) // KV_HEADS)
        scores = keys[:, shared] @ q[head].double() / len(q[head]) ** 0.5
        heads.append(torch.softmax(scores, 0) @ values[:, shared])
    return torch.stack(heads).float()


pieces = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=5)


@either
@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 50), max_size=5), pieces, st.sampled_from([1, 4, 16]))
def test_a_mixed_pass_equals_the_textbook(
    by_compiler: bool,
    decode_starts: list[int],
    chunk_parts: list[tuple[int, int]],
    page_tokens: int,
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
    batch = build_batch(kv, np.zeros(count, dtype=np.int64), decodes, chunks, compiled=by_compiler)
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


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [1, 8, 32, 64, 80, 128, 250])
@pytest.mark.parametrize("groups", [1, 3, 32])
def test_compiled_attention_covers_every_shape(
    dtype: torch.dtype, head_dim: int, groups: int
) -> None:
    kv = arena(24, 20, head_dim, dtype)
    segments = [
        Segment(slot=slot, start=start, length=length)
        for slot, (start, length) in enumerate(
            [(0, 1), (31, 1), (32, 1), (95, 1), (0, 40), (70, 33)]
        )
    ]
    for s in segments:
        kv.reserve(s.slot, s.start + s.length)
    count = sum(s.length for s in segments)
    q = torch.randn(
        count, groups * KV_HEADS, head_dim, generator=torch.Generator().manual_seed(5)
    ).to(dtype)
    zeros = np.zeros(count, dtype=np.int64)
    batch = build_batch(kv, zeros, segments[:4], segments[4:], compiled=True)
    got = paged_attention(kv, 1, q, batch)
    places = [(s.slot, s.start + i) for s in segments for i in range(s.length)]
    expected = torch.stack([textbook(kv, 1, *place, q[i]) for i, place in enumerate(places)])
    close = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(got, expected.to(dtype), **close)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_attention_of_a_token_is_bitwise_the_same_in_every_pass(threads: int) -> None:
    """Other pages, other company, one token at a time or all at once: not one bit changes."""
    generator = np.random.default_rng(0)
    lengths = [1, 31, 32, 33, 64, 100]
    q = torch.randn(sum(lengths), HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seen = []
        for page_tokens, step in ((8, 1000), (64, 7), (24, 1)):
            kv = arena(page_tokens, sum(-(-n // page_tokens) for n in lengths))
            for slot in generator.permutation(len(lengths)):
                kv.reserve(int(slot), lengths[slot])
                kv_of_row = torch.Generator().manual_seed(int(slot))
                values = torch.randn(lengths[slot], 2, KV_HEADS, HEAD_DIM, generator=kv_of_row)
                places = torch.arange(lengths[slot])
                pages = torch.tensor(kv.tables.of(int(slot)))[places // page_tokens]
                kv.write(0, pages, places % page_tokens, values[:, 0], values[:, 1])
            out = torch.empty_like(q)
            firsts = np.cumsum(lengths) - lengths
            for start in range(0, max(lengths), step):
                parts = [
                    Segment(slot=slot, start=start, length=min(step, n - start))
                    for slot, n in enumerate(lengths)
                    if start < n
                ]
                at = [firsts[s.slot] + s.start + i for s in parts for i in range(s.length)]
                zeros = np.zeros(len(at), dtype=np.int64)
                batch = build_batch(kv, zeros, [], parts, compiled=True)
                out[at] = paged_attention(kv, 0, q[at], batch)
            seen.append(out)
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], seen[2])
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_what_lies_behind_a_row_in_its_last_page_is_not_read() -> None:
    kv = arena(16, 2)
    kv.reserve(0, 20)
    kv.storage[kv.tables.of(0)[1], :, :, :, 4:] = torch.nan
    q = torch.randn(1, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(4))
    last = Segment(slot=0, start=19, length=1)
    batch = build_batch(kv, np.zeros(1, dtype=np.int64), [last], [], compiled=True)
    got = paged_attention(kv, 1, q, batch)
    torch.testing.assert_close(got[0], textbook(kv, 1, 0, 19, q[0]), atol=2e-6, rtol=1e-5)


def test_without_a_compiler_or_by_choice_torch_does_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    compiled._load.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setenv("CXX", str(broken))
            assert not is_compiled(torch.float32, 2)
        compiled._load.cache_clear()
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path))
            patch.delenv("CXX", raising=False)
            assert not is_compiled(torch.float32, 2)
    finally:
        compiled._load.cache_clear()
    monkeypatch.setenv("BATCHGEN_COMPILED", "0")
    assert not is_compiled(torch.float32, 2)
    monkeypatch.delenv("BATCHGEN_COMPILED")
    assert not is_compiled(torch.float32, 33)
    assert not is_compiled(torch.float64, 1)
