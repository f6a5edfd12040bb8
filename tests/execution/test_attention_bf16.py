"""Attention in bfloat16 by each set of instructions: equal to the textbook whatever the shape, and
the same for a row in whatever company.

Machines that lack a set run the next smaller one under its name.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import BFLOAT16, arena, attend, expected, queries, textbook
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.exec.attention import Heads
from batchgen.exec.attention.compiled import CompiledBackend, Instructions
from batchgen.exec.compiled import is_compiled

pytestmark = pytest.mark.skipif(not is_compiled(torch.bfloat16), reason="no C++ compiler here")
each_set = pytest.mark.parametrize("instructions", Instructions, ids=lambda one: one.name)


@each_set
@settings(deadline=None, max_examples=60)
@given(
    decode_starts=st.lists(st.integers(0, 300), max_size=4),
    chunk_parts=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 80)), max_size=3),
    page_tokens=st.sampled_from([1, 8, 16, 24, 64]),
    groups=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16, 33]),
    head_dim=st.sampled_from([16, 32, 64, 80, 96, 112, 128]),
    window=st.sampled_from([0, 0, 1, 40, 64, 130]),
    sinks=st.booleans(),
)
def test_a_mixed_pass_equals_the_textbook(
    instructions: Instructions,
    decode_starts: list[int],
    chunk_parts: list[tuple[int, int]],
    page_tokens: int,
    groups: int,
    head_dim: int,
    window: int,
    sinks: bool,
) -> None:
    decodes = [(i, start, 1) for i, start in enumerate(decode_starts)]
    chunks = [(len(decodes) + i, start, n) for i, (start, n) in enumerate(chunk_parts)]
    segments = [*decodes, *chunks]
    if not segments:
        return
    kv = arena(page_tokens, segments, kv_heads=2, head_dim=head_dim, dtype=torch.bfloat16)
    q = queries(sum(n for _, _, n in segments), 2 * groups, head_dim).bfloat16()
    scores = torch.linspace(-2, 4, 2 * groups) if sinks else None
    how = Heads(scale=head_dim**-0.5, window=window, sinks=scores)
    got = attend(CompiledBackend(instructions), kv, 1, q, decodes, chunks, how)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected(kv, 1, segments, q, how), **BFLOAT16)


@each_set
@pytest.mark.parametrize("start", [0, 700])
def test_a_long_chunk_equals_the_textbook(instructions: Instructions, start: int) -> None:
    chunk = (0, start, 300)
    kv = arena(64, [chunk], kv_heads=1, head_dim=64, dtype=torch.bfloat16)
    q = queries(300, 2, 64).bfloat16()
    how = Heads(scale=0.4)  # sharp: few keys have most of the weight, the maximum moves
    got = attend(CompiledBackend(instructions), kv, 0, q, [], [chunk], how)
    torch.testing.assert_close(got.float(), expected(kv, 0, [chunk], q, how), **BFLOAT16)


@each_set
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("window", [0, 70])
def test_a_row_is_bitwise_the_same_in_every_company(
    instructions: Instructions, groups: int, window: int
) -> None:
    generator = np.random.default_rng(0)
    decodes = [(slot, int(n), 1) for slot, n in enumerate(generator.integers(0, 400, 12))]
    chunks = [(12, 0, 90), (13, 65, 33), (14, 0, 1), (15, 120, 20)]
    segments = [*decodes, *chunks]
    kv = arena(16, segments, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    total = sum(n for _, _, n in segments)
    q = queries(total, 2 * groups, 64, seed=7).bfloat16()
    one, how = CompiledBackend(instructions), Heads(scale=0.125, window=window)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, first = [], 0
        for segment in segments:
            part = q[first : first + segment[2]]
            alone.append(attend(one, kv, 0, part, [], [segment], how))
            first += segment[2]
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            together = attend(one, kv, 0, q, decodes, chunks, how)
            assert torch.equal(together, torch.cat(alone))
    finally:
        torch.set_num_threads(before)


@each_set
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("page_tokens", [8, 16, 64])
def test_what_no_query_sees_does_not_matter(
    instructions: Instructions, groups: int, page_tokens: int
) -> None:
    """NaN behind the last token, and before the window."""
    last = (0, 149, 1)
    for window in (0, 3, 70):
        how = Heads(scale=0.125, window=window)
        kv = arena(page_tokens, [last], kv_heads=1, head_dim=64, dtype=torch.bfloat16)
        pages = torch.tensor(kv.tables.of(0))
        positions = torch.arange(len(pages) * page_tokens)
        unseen = (positions > 149) | ((positions < 150 - window) & (window > 0))
        pages_of, offsets = pages[positions // page_tokens], positions % page_tokens
        kv.storage[pages_of[unseen], :, :, :, offsets[unseen]] = torch.nan
        q = queries(1, groups, 64, seed=4).bfloat16()
        got = attend(CompiledBackend(instructions), kv, 1, q, [last], [], how)
        right = textbook(kv, 1, 0, 149, q[0], how)
        torch.testing.assert_close(got[0].float(), right, **BFLOAT16)


@each_set
def test_scores_of_any_size_have_a_softmax(instructions: Instructions) -> None:
    """Far beyond what an exponential holds: the largest takes all."""
    chunk = (0, 0, 100)
    kv = arena(16, [chunk], kv_heads=1, head_dim=64, dtype=torch.bfloat16)
    q = (queries(100, 4, 64, seed=9) * 1000).bfloat16()
    how = Heads(scale=1.0)
    got = attend(CompiledBackend(instructions), kv, 0, q, [], [chunk], how)
    torch.testing.assert_close(got.float(), expected(kv, 0, [chunk], q, how), **BFLOAT16)
