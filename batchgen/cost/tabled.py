"""Passes from tables: the part that every cost model shares. It knows no machine.

A pass of an engine takes, over its ranks, the longest of

    max(own layers + expert layers on the union + exchange of the fullest rank + fixed,
        checkpoint on the host link) + slope(rows) * context

The checkpoint hides behind the part that does not depend on the context: that keeps the pass affine
in the context with an integer slope, which the runtime needs for exact coalescing, and costs
nothing, since a decode step closes far fewer bytes than it reads weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from batchgen.cost.api import FloatArray, IntArray, Link, PassDetail, PassLoad, RankLoad
from batchgen.cost.table import IntTable
from batchgen.cost.work import moved_bytes, useful_flops
from batchgen.layout import Layout
from batchgen.model import ModelSpec

MOST_BASES = 1 << 14
"""Compositions whose times are kept (2 MB)."""

Tokens = Callable[[FloatArray], FloatArray]
Rows = Callable[[int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRates:
    """ps of prefill attention, all layers: a + b terms are max(pairs, read bytes) + the rest."""

    pair: float
    read_bytes: float = 0.0
    read: float = 0.0
    token: float = 0.0
    window_pair: float = 0.0
    window_width: int = 0
    step_ps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRates:
    """ps per KV token and fixed ps of each link of a rank. over_host: "intra" is the host link."""

    per_token: dict[Link, float]
    fixed: dict[Link, float]
    switch_ps: int
    over_host: bool = False


class TabledCost:
    """Everything of `CostModel` but the report of modules; a subclass fills the tables.

    own(tokens of a rank), union(tokens of the engine), head(samples), slope(rows) in ps per KV
    token, fixed(rows) and chunk_overhead(prompt tokens of a rank) are elementwise functions in
    picoseconds (`per_row` makes one of a function of a number); `step_ps` is paid once per pass.
    exchange(tokens of the fullest rank, times ranks): a collective ends with its slowest sender;
    `theta` of the shorter of it and `union` is not hidden behind the longer; gathered(tokens of the
    engine): the exchange of passes with prompts, where it is of what there is and not of the
    fullest rank. `prompts`: what both are for passes without decodes, where that differs.
    `beside`: by how much the slope is steeper where a rank has prompt tokens too.
    """

    def __init__(
        self,
        model: ModelSpec,
        layout: Layout,
        *,
        own: Tokens,
        union: Tokens,
        head: Tokens,
        slope: Tokens,
        fixed: Tokens,
        step_ps: int,
        chunks: ChunkRates,
        copies: CopyRates,
        chunk_overhead: Tokens = np.zeros_like,
        exchange: Tokens | None = None,
        gathered: Tokens | None = None,
        theta: float = 1.0,
        prompts: Tokens | None = None,
        beside: float = 1.0,
    ) -> None:
        self.model, self.layout = model, layout
        self.num_ranks = layout.ranks_per_engine
        self._exchange = None if exchange is None else IntTable(exchange)
        self._gathered = None if gathered is None else IntTable(gathered)
        self._theta = theta
        self.detailed = self.streams = False
        self.peers_over_host = copies.over_host
        self._fetched_ps = 0  # from the host, by passes of prompts alone
        self._own, self._union, self._head = IntTable(own), IntTable(union), IntTable(head)
        self._prompts = None if prompts is None else IntTable(prompts)
        self._slope, self._fixed = IntTable(slope), IntTable(fixed)
        self._beside = self._slope
        if beside != 1.0:
            self._beside = IntTable(lambda rows: beside * slope(rows))
        self._step_ps = step_ps
        self._chunks, self._copies = chunks, copies
        self._chunk_overhead = IntTable(chunk_overhead)
        self._host_ps = copies.per_token["host"]
        self._affine: dict[int, tuple[int, int]] = {}
        self._bases: dict[int, tuple[int, int]] = {}  # by composition: time without context, slope

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        tokens = load.decodes + load.chunk_tokens
        union = tokens.sum(axis=0)
        shared = self.union_ps(load) + self._step_ps
        base = self._own.take(tokens)
        base += self._head.take(load.samples)
        base += self._fixed.take(load.decodes)
        if load.chunk_tokens.any():
            base += self._chunk_ps(load) + self._chunk_overhead.take(load.chunk_tokens)
            shared += np.where(load.chunk_tokens.any(axis=0), self._chunks.step_ps, 0)
        base += shared
        if load.checkpoint.any():
            np.maximum(base, np.rint(load.checkpoint * self._host_ps).astype(np.int64), out=base)
        base += self._slopes(load) * load.context
        longest: IntArray = base.max(axis=0)
        longest[union == 0] = 0
        return longest

    def _slopes(self, load: PassLoad) -> IntArray:
        slopes = self._slope.take(load.decodes)
        if self._beside is self._slope:
            return slopes
        return np.where(load.chunk_tokens > 0, self._beside.take(load.decodes), slopes)

    def union_ps(self, load: PassLoad) -> IntArray:
        """What the tokens of all ranks take together, per pass."""
        tokens = load.decodes + load.chunk_tokens
        union = tokens.sum(axis=0)
        time = self._union.take(union)
        if self._exchange is not None:
            sent = self._exchange.take(tokens.max(axis=0) * self.num_ranks)
            if self._gathered is not None:
                some = load.chunk_tokens.any(axis=0)
                sent = np.where(some, self._gathered.take(union), sent)
            shorter = np.rint(self._theta * np.minimum(time, sent)).astype(np.int64)
            time = np.maximum(time, sent) + shorter
        if self._prompts is not None:
            time = np.where(load.decodes.any(axis=0), time, self._prompts.take(union))
        return time

    def _union_one_ps(self, union: int, fullest: int, *, decodes: bool, prompts: bool) -> int:
        # The same operations as in `union_ps`.
        if self._prompts is not None and not decodes:
            return self._prompts.at(union)
        time = self._union.at(union)
        if self._exchange is None:
            return time
        if prompts and self._gathered is not None:
            sent = self._gathered.at(union)
        else:
            sent = self._exchange.at(fullest * self.num_ranks)
        return max(time, sent) + round(self._theta * min(time, sent))

    def _chunk_ps(self, load: PassLoad) -> IntArray:
        rates = self._chunks
        time = np.maximum(load.chunk_pairs * rates.pair, load.chunk_reads * rates.read_bytes)
        time += load.chunk_reads * rates.read
        time += load.chunk_tokens * rates.token
        if rates.window_pair:
            seen = np.minimum(load.chunk_pairs, rates.window_width * load.chunk_tokens)
            time += seen * rates.window_pair
        rounded: IntArray = np.rint(time).astype(np.int64)
        return rounded

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
        tokens = decodes + chunk_tokens
        if tokens == 0:
            return 0
        # A run of passes asks for one composition again and again, engines take turns with a few.
        key = (decodes << 24 | chunk_tokens) << 24 | samples
        known = self._bases.get(key)
        if known is None:
            union = tokens * self.num_ranks
            base = self._step_ps + self._own.at(tokens)
            some = decodes > 0, chunk_tokens > 0
            base += self._union_one_ps(union, tokens, decodes=some[0], prompts=some[1])
            base += self._head.at(samples) + self._fixed.at(decodes)
            if chunk_tokens:
                base += self._chunk_overhead.at(chunk_tokens) + self._chunks.step_ps
            if len(self._bases) >= MOST_BASES:
                self._bases.clear()
            slope = (self._beside if chunk_tokens else self._slope).at(decodes)
            known = self._bases[key] = base, slope
        base, slope = known
        if chunk_tokens:
            base += self._chunk_one_ps(chunk_tokens, chunk_pairs, chunk_reads)
        if checkpoint:
            base = max(base, round(checkpoint * self._host_ps))
        return base + slope * context

    def _chunk_one_ps(self, tokens: int, pairs: int, reads: int) -> int:
        # The same operations in the same order as `_chunk_ps`, or the last bit differs.
        rates = self._chunks
        time = max(pairs * rates.pair, reads * rates.read_bytes)
        time += reads * rates.read
        time += tokens * rates.token
        if rates.window_pair:
            time += min(pairs, rates.window_width * tokens) * rates.window_pair
        return round(time)

    def time_ps(self, loads: Sequence[RankLoad]) -> int:
        if self.num_ranks == 1:
            return self.pass_one_ps(*loads[0])
        rows = prompts = longest = fullest = 0
        for decodes, _, tokens, *_ in loads:
            rows += decodes
            prompts += tokens
            fullest = max(fullest, decodes + tokens)
        if not rows + prompts:
            return 0
        shared = self._step_ps
        shared += self._union_one_ps(rows + prompts, fullest, decodes=rows > 0, prompts=prompts > 0)
        if prompts:
            shared += self._chunks.step_ps
        own, head, fixed = self._own.at, self._head.at, self._fixed.at
        for decodes, context, tokens, pairs, reads, samples, checkpoint in loads:
            base = own(decodes + tokens) + head(samples) + fixed(decodes) + shared
            if tokens:
                base += self._chunk_one_ps(tokens, pairs, reads) + self._chunk_overhead.at(tokens)
            if checkpoint:
                base = max(base, round(checkpoint * self._host_ps))
            base += (self._beside if tokens else self._slope).at(decodes) * context
            longest = max(longest, base)
        return longest

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        key = 2 * decodes + checkpoint
        known = self._affine.get(key)
        if known is None:
            if self.num_ranks != 1:
                raise ValueError(f"decode_affine needs one rank, the engine has {self.num_ranks}")
            start = self.pass_one_ps(
                decodes, 0, samples=decodes, checkpoint=decodes if checkpoint else 0
            )
            known = self._affine[key] = (start, self._slope.at(decodes))
        return known

    def streams_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        down = np.rint(load.checkpoint * self._host_ps).astype(np.int64).max(axis=0)
        prompts = load.chunk_tokens.any(axis=0) & ~load.decodes.any(axis=0)
        return np.where(prompts, self._fetched_ps, 0), down

    def copy_ps(self, tokens: int, link: Link) -> int:
        if tokens <= 0:
            return 0
        return round(tokens * self._copies.per_token[link] + self._copies.fixed[link])

    def recompute_ps(self, tokens: int) -> int:
        """As if every rank of the engine prefilled as much at the same time."""
        return self.pass_one_ps(0, 0, chunk_tokens=tokens, chunk_pairs=tokens * tokens, samples=1)

    def switch_ps(self) -> int:
        return self._copies.switch_ps

    def attention_parts(self, load: PassLoad) -> dict[str, IntArray]:
        """The modules of `breakdown` that come from the tables alone."""
        scores = self._slopes(load) * load.context + self._fixed.take(load.decodes)
        streamed = np.rint(load.checkpoint * self._host_ps).astype(np.int64)
        return {
            "attention_decode": scores.max(axis=0),
            "attention_prefill": self._chunk_ps(load).max(axis=0),
            "lm_head": self._head.take(load.samples).max(axis=0),
            "checkpoint": streamed.max(axis=0),
        }

    def flops(self, load: PassLoad) -> FloatArray:
        return useful_flops(self.model, load)

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        return moved_bytes(self.model, self.layout, load)


def per_row(function: Rows) -> Tokens:
    """A scalar function of a row count, elementwise."""

    def over(rows: FloatArray) -> FloatArray:
        values = [function(int(row)) if row > 0 else 0.0 for row in rows.ravel()]
        return np.array(values, dtype=np.float64).reshape(rows.shape)

    return over
