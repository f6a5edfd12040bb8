"""Passes whose decode attention runs beside the compute of the same pass (`CostModel`): another
model's passes, with the shorter of the two hidden behind the longer.

    max(compute, attention of decodes) + theta * the shorter

Both are read off the inner model: a pass without its contexts, and what contexts add. NanoFlow
(arXiv 2408.12757) does this with small batches whose operators overlap. Launches and host work
count as compute, which cannot be hidden by more than the attention lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batchgen.cost.api import CostModel, FloatArray, IntArray, Link, PassDetail, PassLoad, RankLoad


class OverlappedCost:
    """`inner` with `theta` of the shorter part left over: 1 is serial, 0 perfect overlap."""

    def __init__(self, inner: CostModel, theta: float) -> None:
        self.inner, self.theta = inner, theta
        self.num_ranks, self.detailed, self.streams = inner.num_ranks, True, inner.streams
        self.peers_over_host = inner.peers_over_host

    def _both(self, compute: int, whole: int) -> int:
        attention = whole - compute
        return max(compute, attention) + round(self.theta * min(compute, attention))

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        if not self.inner.detailed:
            detail = None
        whole = self.inner.pass_ps(load, detail)
        bare = replace(load, context=np.zeros_like(load.context))
        compute = self.inner.pass_ps(bare, PassDetail.even(bare) if detail is not None else None)
        attention = whole - compute
        rest = np.rint(self.theta * np.minimum(compute, attention)).astype(np.int64)
        time: IntArray = np.maximum(compute, attention) + rest
        return time

    def time_ps(self, loads: Sequence[RankLoad]) -> int:
        bare = [(one[0], 0, *one[2:]) for one in loads]
        return self._both(self.inner.time_ps(bare), self.inner.time_ps(loads))

    def pass_one_ps(
        self,
        decodes: int,
        context: int,
        chunk_tokens: int = 0,
        chunk_pairs: int = 0,
        chunk_reads: int = 0,
        samples: int = 0,
        checkpoint: int = 0,
    ) -> int:
        more = chunk_tokens, chunk_pairs, chunk_reads, samples, checkpoint
        whole = self.inner.pass_one_ps(decodes, context, *more)
        return self._both(self.inner.pass_one_ps(decodes, 0, *more), whole)

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        raise ValueError("passes with overlap are not affine in the context")

    def copy_ps(self, tokens: int, link: Link) -> int:
        return self.inner.copy_ps(tokens, link)

    def streams_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        return self.inner.streams_ps(load)

    def recompute_ps(self, tokens: int) -> int:
        return self.inner.recompute_ps(tokens)

    def switch_ps(self) -> int:
        return self.inner.switch_ps()

    def flops(self, load: PassLoad) -> FloatArray:
        return self.inner.flops(load)

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        return self.inner.hbm_bytes(load)

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "attention_theta": self.theta}
