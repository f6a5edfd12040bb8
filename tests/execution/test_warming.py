"""Passes over nothing: every number in them points into the pass."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batchgen.exec.attention.paged import PassShape, unpack
from batchgen.exec.gpu.warming import fill, warming_shapes


@given(
    budget=st.integers(2, 20_000),
    seats=st.integers(1, 2000),
    page=st.sampled_from((1, 16, 64)),
    context=st.integers(2, 50_000),
)
def test_passes_point_at_what_they_have(budget: int, seats: int, page: int, context: int) -> None:
    shapes = list(warming_shapes(budget, seats, page, context))
    assert max(shape.num_tokens for shape in shapes) <= budget
    assert max(shape.num_decodes for shape in shapes) <= seats
    for shape in shapes:
        check(shape, page)
        assert shape.max_context <= context


def check(shape: PassShape, page: int) -> None:
    paged = unpack(fill(shape, spare=5), shape)
    owners, positions = paged.token_rows.numpy(), paged.positions.numpy()
    n, total = shape.num_decodes, shape.num_tokens
    assert owners.max() < n + shape.num_chunks
    assert positions.max() // page < shape.table_width
    assert (paged.tables == 5).all()
    assert positions.min() >= 0
    assert (paged.wanted < total).all()
    assert (paged.contexts <= shape.max_context).all()
    assert (paged.chunk_rows.numpy() == np.arange(n, n + shape.num_chunks)).all()
    # Kernels are compiled for pointers of 16 bytes: a pass of other counts must not change that.
    used = (paged.contexts, paged.starts, paged.firsts, paged.lengths, paged.tables)
    for part in (*used, paged.decode_rows, paged.chunk_rows, paged.positions, paged.token_rows):
        assert part.storage_offset() % 4 == 0
    starts, firsts, lengths = (x.numpy() for x in (paged.starts, paged.firsts, paged.lengths))
    assert lengths.sum() == total - n
    assert shape.num_chunks == 0 or lengths.max() <= shape.max_length
    assert (firsts + lengths <= total).all()
    for chunk in range(shape.num_chunks):
        ours = slice(int(firsts[chunk]), int(firsts[chunk] + lengths[chunk]))
        assert (owners[ours] == n + chunk).all()
        assert (positions[ours] == starts[chunk] + np.arange(lengths[chunk])).all()
