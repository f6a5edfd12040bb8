"""Decode passes as CUDA graphs: one per number of rows and width of tables, captured when needed.

A graph is a list of launches with fixed addresses and sizes. Passes of other sizes are filled up to
the next one, and what changes from pass to pass (tokens, contexts, pages) lies in an array that is
copied to where the graph expects it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from batchgen.exec.attention.paged import WIDTHS, PassShape


def padded_rows(rows: int) -> int:
    """The next size that graphs are made for: powers of two up to 16, then steps of an eighth to a
    quarter of the size. Rows that are not there cost little: a decode pass reads weights."""
    if rows <= 16:
        return 1 << (rows - 1).bit_length()
    step = max(16, 1 << (rows.bit_length() - 3))
    return -(-rows // step) * step


def decode_shape(rows: int, table_width: int, page_tokens: int) -> PassShape:
    """The shape of the graph that holds a pass of `rows` decoding rows."""
    count = padded_rows(rows)
    width = max(WIDTHS, 1 << (table_width - 1).bit_length())
    return PassShape(count, count, 0, count, width, width * page_tokens, 0)


@dataclass(slots=True)
class _Captured:
    inputs: torch.Tensor
    logits: torch.Tensor
    graph: Any


class DecodeGraphs:
    """`compute(inputs, shape)` launches a pass whose packed form is `inputs`; it returns logits."""

    def __init__(
        self, compute: Callable[[torch.Tensor, PassShape], torch.Tensor], stream: Any
    ) -> None:
        self._compute = compute
        self._stream = stream
        self._graphs: dict[PassShape, _Captured] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, packed: torch.Tensor, shape: PassShape) -> torch.Tensor:
        """Logits [rows of the shape, vocab] of a packed pass on the (pinned) host; they are written
        over by the next pass. Called with the stream current."""
        found = self._graphs.get(shape)
        if found is None:
            return self._first(packed, shape)
        found.inputs.copy_(packed, non_blocking=True)
        found.graph.replay()
        return found.logits

    def _first(self, packed: torch.Tensor, shape: PassShape) -> torch.Tensor:
        """The first pass of a shape runs launch by launch, which compiles what is new; then the
        same launches are captured."""
        inputs = packed.to("cuda", non_blocking=True)
        logits = self._compute(inputs, shape)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            captured = self._compute(inputs, shape)
        self._pool = self._pool or graph.pool()
        self._graphs[shape] = _Captured(inputs, captured, graph)
        return logits
