"""A cost model in small integers, for 1 to R ranks. Invented coefficients: only equality counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgen.cost.api import IntArray, Link, PassDetail, PassLoad
from batchgen.runtime.advisor import HOME, Offer, RankLoad


class ToyCost:
    """Per rank: a decode 700, a context token 3, a prompt token 50, ...; plus a shared part."""

    DECODE, CONTEXT, TOKEN, PAIRS, READS, SAMPLE, CHECKPOINT = 700, 3, 50, 1, 2, 90, 11
    FIXED, SHARED = 5000, 40

    def __init__(
        self,
        num_ranks: int = 1,
        *,
        copy_fixed_ps: int = 3000,
        copy_ps: int = 170,
        stream_ps: int = 0,
        peers_over_host: bool = False,
    ) -> None:
        assert stream_ps < self.FIXED, "a stream is hidden in its pass"
        self.num_ranks = num_ranks
        self.detailed = False
        self.streams = stream_ps > 0
        self.peers_over_host = peers_over_host
        self.stream = stream_ps
        self.copy_fixed = copy_fixed_ps
        self.copy_token = copy_ps

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        local = (
            self.DECODE * load.decodes
            + self.CONTEXT * load.context
            + self.TOKEN * load.chunk_tokens
            + self.PAIRS * load.chunk_pairs
            + self.READS * load.chunk_reads
            + self.SAMPLE * load.samples
            + self.CHECKPOINT * load.checkpoint
        )
        tokens = (load.decodes + load.chunk_tokens).sum(axis=0)
        fixed = self.FIXED * self.num_ranks  # so that fewer ranks are better for few rows
        times: IntArray = np.where(tokens > 0, local.max(axis=0) + fixed + self.SHARED * tokens, 0)
        return times

    def time_ps(self, loads: Sequence[Sequence[int]]) -> int:
        """One pass of these loads, one entry per rank, by scalars."""
        local, tokens = 0, 0
        weights = (
            self.DECODE,
            self.CONTEXT,
            self.TOKEN,
            self.PAIRS,
            self.READS,
            self.SAMPLE,
            self.CHECKPOINT,
        )
        for load in loads:
            local = max(local, sum(w * value for w, value in zip(weights, load, strict=True)))
            tokens += load[0] + load[2]
        return local + self.FIXED * self.num_ranks + self.SHARED * tokens if tokens else 0

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
        values = (decodes, context, chunk_tokens, chunk_pairs, chunk_reads, samples, checkpoint)
        load = PassLoad(*(np.full((self.num_ranks, 1), value, np.int64) for value in values))
        return int(self.pass_ps(load)[0])

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        if self.num_ranks != 1:
            raise ValueError("several ranks")
        each = self.DECODE + self.SAMPLE + self.SHARED + (self.CHECKPOINT if checkpoint else 0)
        return self.FIXED + decodes * each, self.CONTEXT

    def streams_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        busy = (load.decodes + load.chunk_tokens).any(axis=0)
        return np.where(busy, self.stream, 0), self.CHECKPOINT * load.checkpoint.max(axis=0)

    def copy_ps(self, tokens: int, link: Link) -> int:
        return self.copy_fixed + self.copy_token * tokens * (2 if link == "inter" else 1)

    def recompute_ps(self, tokens: int) -> int:
        return self.TOKEN * tokens + self.PAIRS * tokens * tokens

    def switch_ps(self) -> int:
        return 20_000

    def flops(self, load: PassLoad) -> Any:
        return load.chunk_tokens.sum(axis=0).astype(np.float64)

    def hbm_bytes(self, load: PassLoad) -> Any:
        return load.context.sum(axis=0).astype(np.float64)

    def describe(self) -> dict[str, Any]:
        return {"toy": True}


@dataclass(frozen=True)
class ToyAdvisor:
    """Times of one decode pass in the layout of now and in layout "half", rows spread evenly.

    "half" has half as many ranks of twice the pages, so that cases may switch to and fro.
    """

    home: ToyCost
    hbm_pages: int
    page: int

    def cost(self, layout: str) -> ToyCost:
        home = self.home
        return (
            home if layout == HOME else ToyCost(max(1, home.num_ranks // 2), stream_ps=home.stream)
        )

    def partition(self, engine: int, contexts: Sequence[int], current: str) -> Offer:
        ranks, pages = max(1, self.home.num_ranks // 2), 2 * self.hbm_pages
        need = sum(-(-2 * context // self.page) for context in contexts)
        now = self._even(self.cost(current), contexts)
        then = self._even(self.cost("half"), contexts)
        fits = self.home.num_ranks > 1 and need <= pages
        return Offer(
            layout="half" if fits else current,
            num_ranks=ranks,
            hbm_pages=pages,
            now_ps=now,
            then_ps=then,
            switch_ps=self.home.switch_ps(),
        )

    def _even(self, cost: ToyCost, contexts: Sequence[int]) -> int:
        each = -(-len(contexts) // cost.num_ranks)
        return cost.pass_one_ps(each, sum(contexts) // cost.num_ranks, samples=each)

    def expected_ps(self, engine: int, layout: str, loads: Sequence[RankLoad]) -> int:
        return self.cost(layout).time_ps(loads)
