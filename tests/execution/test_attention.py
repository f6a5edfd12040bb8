"""Paged attention: every backend equal to the textbook, and bitwise the same for a row in whatever
batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attention_cases import (
    BFLOAT16,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    arena,
    attend,
    expected,
    queries,
    textbook,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec import compiled
from batchgen.exec.attention import Backend, Heads
from batchgen.exec.attention.chunks import MAX_PADDING, chunk_groups
from batchgen.exec.attention.compiled import CompiledBackend
from batchgen.exec.attention.exact import ExactBackend
from batchgen.exec.attention.reference import TorchBackend
from batchgen.exec.compiled import is_compiled

needs_compiler = pytest.mark.skipif(not is_compiled(torch.float32), reason="no C++ compiler here")
BACKENDS = [pytest.param("compiled", marks=needs_compiler), "torch", "exact"]


def backend(name: str, groups: int, window: int = 0) -> Backend:
    if name == "compiled":
        return CompiledBackend()
    return TorchBackend([window]) if name == "torch" else ExactBackend(groups, [window])


pieces = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=4)


@pytest.mark.parametrize("name", BACKENDS)
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 150), max_size=4),
    pieces,
    st.sampled_from([1, 4, 16, 24]),
    st.sampled_from([0, 1, 3, 16, 33, 500]),
    st.booleans(),
)
def test_a_mixed_pass_equals_the_textbook(
    name: str,
    decode_starts: list[int],
    chunk_parts: list[tuple[int, int]],
    page_tokens: int,
    window: int,
    sinks: bool,
) -> None:
    decodes = [(i, start, 1) for i, start in enumerate(decode_starts)]
    chunks = [(len(decodes) + i, start, n) for i, (start, n) in enumerate(chunk_parts)]
    segments = [*decodes, *chunks]
    if not segments:
        return
    kv = arena(page_tokens, segments)
    q = queries(sum(n for _, _, n in segments))
    how = Heads(
        scale=0.3, window=window, sinks=torch.tensor([-1.0, 0.0, 2.0, 9.0]) if sinks else None
    )
    got = attend(backend(name, HEADS // KV_HEADS, window), kv, 1, q, decodes, chunks, how)
    torch.testing.assert_close(got, expected(kv, 1, segments, q, how), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize(
    ("heads", "head_dim", "value_dim"), [(3, 24, 17), (40, 80, 64), (64, 96, 1)]
)
def test_latents_are_keys_whose_first_elements_are_values(
    name: str, page_tokens: int, heads: int, head_dim: int, value_dim: int
) -> None:
    decodes, chunks = [(0, 0, 1), (1, 70, 1), (2, 31, 1)], [(3, 0, 9), (4, 20, 33)]
    kv = arena(page_tokens, [*decodes, *chunks], kv_heads=1, head_dim=head_dim, parts=1)
    q = queries(45, heads, head_dim)
    how = Heads(scale=0.1, value_dim=value_dim)
    got = attend(backend(name, heads), kv, 1, q, decodes, chunks, how)
    assert got.shape == (45, heads, value_dim)
    right = expected(kv, 1, [*decodes, *chunks], q, how)
    torch.testing.assert_close(got, right, atol=2e-6, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(pieces.filter(bool), st.sampled_from([1, 4, 16]))
def test_groups_of_chunks_waste_little(parts: list[tuple[int, int]], page_tokens: int) -> None:
    segments = [(i, start, n) for i, (start, n) in enumerate(parts)]
    kv = arena(page_tokens, segments)
    slots, starts, lengths = np.array(segments).T
    groups = chunk_groups(kv, slots, starts, lengths, np.cumsum(lengths) - lengths)
    assert sorted(torch.cat([g.where for g in groups]).tolist()) == list(range(lengths.sum()))
    for group in groups:
        work = group.mask.shape[2] * group.mask.shape[3]
        assert len(group.pages) == 1 or work * len(group.pages) <= MAX_PADDING * sum(
            n * (start + n + page_tokens) for start, n in parts
        )


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("page_tokens", [8, 16, 64])
def test_a_decoding_row_is_bitwise_the_same_in_every_batch(page_tokens: int, window: int) -> None:
    generator = np.random.default_rng(0)
    contexts = generator.integers(1, 12 * page_tokens, 64).tolist()
    segments = [(slot, c - 1, 1) for slot, c in enumerate(contexts)]
    kv, q = arena(page_tokens, segments), queries(64, seed=2)
    one, how = TorchBackend([window]), Heads(scale=0.25, window=window)

    def run(begin: int, end: int) -> torch.Tensor:
        return attend(one, kv, 0, q[begin:end], segments[begin:end], [], how)

    whole = run(0, 64)
    for size in (1, 2, 3, 7, 33):
        for begin in range(0, 64 - size, 9):
            assert torch.equal(run(begin, begin + size), whole[begin : begin + size])


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [1, 8, 32, 64, 80, 96, 112, 128, 192, 250])
@pytest.mark.parametrize("groups", [1, 3, 7, 32, 33])
def test_compiled_attention_covers_every_shape(
    dtype: torch.dtype, head_dim: int, groups: int
) -> None:
    decodes = [(0, 0, 1), (1, 31, 1), (2, 32, 1), (3, 95, 1)]
    chunks = [(4, 0, 20), (5, 70, 13)]
    kv = arena(24, [*decodes, *chunks], head_dim=head_dim, dtype=dtype)
    q = queries(37, groups * KV_HEADS, head_dim, seed=5).to(dtype)
    how = Heads(scale=head_dim**-0.5)
    got = attend(CompiledBackend(), kv, 1, q, decodes, chunks, how)
    right = expected(kv, 1, [*decodes, *chunks], q, how)
    close = {torch.float32: {"atol": 2e-6, "rtol": 1e-5}, torch.bfloat16: BFLOAT16}.get(dtype, {})
    torch.testing.assert_close(got, right.to(dtype), **close)


@pytest.mark.parametrize("name", [pytest.param("compiled", marks=needs_compiler), "exact"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("window", [0, 37])
def test_attention_of_a_token_is_bitwise_the_same_in_every_pass(
    name: str, threads: int, window: int
) -> None:
    """Other pages, other company, one token at a time or all at once: not one bit changes."""
    generator = np.random.default_rng(0)
    lengths = [1, 31, 32, 33, 64, 100]
    firsts = np.cumsum(lengths) - lengths
    q = queries(sum(lengths), seed=3)
    how = Heads(scale=0.25, window=window, sinks=torch.arange(4.0))
    one = backend(name, HEADS // KV_HEADS, window)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seen = []
        for page_tokens, step in ((8, 1000), (64, 7), (24, 1)):
            order = generator.permutation(len(lengths)).tolist()
            kv = arena(page_tokens, [(slot, 0, lengths[slot]) for slot in order])
            for slot, length in enumerate(lengths):
                of_row = torch.Generator().manual_seed(slot)
                values = torch.randn(length, 2, KV_HEADS, HEAD_DIM, generator=of_row)
                places = torch.arange(length)
                pages = torch.tensor(kv.tables.of(slot))[places // page_tokens]
                kv.write(0, pages, places % page_tokens, values[:, 0], values[:, 1])
            out = torch.empty_like(q)
            for start in range(0, max(lengths), step):
                parts = [
                    (slot, start, min(step, n - start))
                    for slot, n in enumerate(lengths)
                    if start < n
                ]
                at = [firsts[slot] + first + i for slot, first, n in parts for i in range(n)]
                out[at] = attend(one, kv, 0, q[at], [], parts, how)
            seen.append(out)
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(seen[0], seen[2])
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_what_lies_outside_of_what_a_row_sees_is_not_read() -> None:
    last = (0, 19, 1)
    for window in (0, 3):
        kv = arena(16, [last])
        kv.storage[kv.tables.of(0)[1], :, :, :, 4:] = torch.nan
        if window:
            kv.storage[kv.tables.of(0)[0]] = torch.nan
        q, how = queries(1, seed=4), Heads(scale=0.25, window=window)
        got = attend(CompiledBackend(), kv, 1, q, [last], [], how)
        torch.testing.assert_close(got[0], textbook(kv, 1, 0, 19, q[0], how), atol=2e-6, rtol=1e-5)


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
            assert not is_compiled(torch.float32)
        compiled._load.cache_clear()
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path))
            patch.delenv("CXX", raising=False)
            assert not is_compiled(torch.float32)
    finally:
        compiled._load.cache_clear()
    monkeypatch.setenv("BATCHGEN_COMPILED", "0")
    assert not is_compiled(torch.float32)
    monkeypatch.delenv("BATCHGEN_COMPILED")
    assert not is_compiled(torch.float64)
