"""Admission parts: how many rows get pages now. They do not cut prompts into chunks.

All of these are monotone: while nobody leaves, free pages only fall, so a refused row stays
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchgen.memory.pool import BOUNDARIES_AHEAD, pages_ahead, pages_for
from batchgen.policy.base import AdmissionPart, Part
from batchgen.policy.options import MOST_TOKENS, option

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank
    from batchgen.sequence import Table


class FitsNow(AdmissionPart):
    """Admit in order while the whole prompt fits the free pages, as in vLLM V1.

    Optimistic: growth is not reserved. `watermark` is a fraction of the pool that admission leaves
    free.
    """

    changes = "never"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        watermark: float = option(0.0, least=0, most=1)

    def room(self, engine: EngineMachine, rank: Rank, pages: int, free: int, resident: int) -> bool:
        return pages + int(self.config.watermark * rank.size) <= free


class WorstCase(AdmissionPart):
    """Admit only rows whose prompt and whole output budget fit, and keep those pages leased (Orca).

    A row whose worst case exceeds the pool may run alone: it may end before the pool is full.
    """

    changes = "never"
    reserves = True

    def lease(self, table: Table, row: int, rank: Rank) -> int:
        worst = table.v_prompt[row] + table.v_budget[row]
        return min(pages_for(worst, rank.page_tokens), rank.size)


class WholeBatch(WorstCase):
    """Static batching: take a batch, run it to its last row, only then take the next."""

    whole_batch = True


class LazyPages(AdmissionPart):
    """BatchGen's refill: every row keeps pages for `boundaries_ahead` boundaries, so many fit.

    Source: BatchGen paper, sections 5.2 and 5.3 (two pages).
    """

    changes = "never"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        boundaries_ahead: int = option(BOUNDARIES_AHEAD, least=0, most=1000)

    def room(self, engine: EngineMachine, rank: Rank, pages: int, free: int, resident: int) -> bool:
        each = pages_ahead(engine.boundary, self.config.boundaries_ahead, rank.page_tokens)
        return pages + each * (resident + 1) <= free


class FitsRest(AdmissionPart):
    """Admit while the prompt fits beside part of the output that resident rows may still produce.

    `ratio` of the rest of every budget, at most `most_tokens` of it, stays free: 0 is `fits-now`, 1
    never runs short. Counted row by row in whole pages: what a row has and what is kept for it
    never become less together, so that time alone lets nobody in. Source: the new-token ratio of
    SGLang's scheduler (0.7 at first, then less).
    """

    changes = "never"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        ratio: float = option(0.5, least=0, most=1)
        most_tokens: int = option(4096, least=1, most=MOST_TOKENS)

    def room(self, engine: EngineMachine, rank: Rank, pages: int, free: int, resident: int) -> bool:
        table, kept = engine.table, 0
        for row in rank.running:  # `free` is without the page of its next token
            computed = table.v_offset[row] + rank.k
            rest = table.v_prompt[row] + table.v_budget[row] - computed
            kept += self._kept(rank, computed, rest, computed + 1)
        for row in rank.prefilling:
            produced = table.v_produced[row]
            computed = table.v_prompt[row] + produced
            kept += self._kept(rank, computed, table.v_budget[row] - produced, computed)
        for row in rank.held:  # its newest token is not computed yet
            produced = table.v_produced[row] - 1
            computed = table.v_prompt[row] + produced
            kept += self._kept(rank, computed, table.v_budget[row] - produced, computed)
        return pages + kept <= free

    def _kept(self, rank: Rank, computed: int, rest: int, leased: int) -> int:
        """Pages for the part of `rest` that a row of `computed` tokens may still fill, beside those
        of its first `leased` tokens."""
        ahead = max(int(self.config.ratio * min(rest, self.config.most_tokens)), 1)
        page = rank.page_tokens
        return max(pages_for(computed + ahead, page) - pages_for(leased, page), 0)


class FitsPeak(AdmissionPart):
    """Admit while no moment to come needs more pages than there are, if every row produces what is
    expected of it: the prediction, else the plan of the order part, else the budget. `watermark` of
    the pool stays free. Source: NanoFlow (arXiv 2408.12757), section 4.2: predicted peak memory.
    """

    changes = "pass"
    sees_row = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        watermark: float = option(0.01, least=0, most=1)

    def room_for(self, engine: EngineMachine, rank: Rank, row: int, pages: int, free: int) -> bool:
        if pages > free:
            return False
        table, size = engine.table, rank.page_tokens
        limit = int((1 - self.config.watermark) * rank.size) * size
        running = np.fromiter(rank.running, np.int64, len(rank.running))
        others = np.array([row, *rank.prefilling, *rank.held], np.int64)
        tokens = table.offset[running] + rank.k
        begun = table.prompt[others] + table.produced[others].astype(np.int64)
        begun[0] = pages * size  # less what it shares
        tokens = np.concatenate([tokens, begun]) + size // 2
        produced = tokens - size // 2 - table.prompt[np.concatenate([running, others])] + 1
        produced[len(running) :] = table.produced[others]
        rest = expected_outputs(table, np.concatenate([running, others])) - produced
        return peak_tokens(np.maximum(rest, 1), tokens) <= limit


def expected_outputs(table: Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens that rows are expected to produce in all."""
    budget, predicted, expected = table.budget[rows], table.predicted[rows], table.expected[rows]
    known = np.where(predicted > 0, predicted, np.where(expected > 0, expected, budget))
    return np.minimum(known, budget).astype(np.int64)


def peak_tokens(rest: NDArray[np.int64], tokens: NDArray[np.int64]) -> int:
    """The most tokens that rows hold together, from tokens to come and tokens now: each grows by
    one in every pass, and is gone when it has produced all."""
    order = np.argsort(-rest, kind="stable")
    lasting = rest[order]
    held = np.cumsum(tokens[order]) + np.arange(1, len(order) + 1) * lasting
    return int(held.max(initial=0))
