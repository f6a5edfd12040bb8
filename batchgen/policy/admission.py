"""Admission parts: how many rows get pages now. They do not cut prompts into chunks.

All of these are monotone: while nobody leaves, free pages only fall, so a refused row stays
refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.memory.pool import BOUNDARIES_AHEAD, pages_ahead, pages_for
from batchgen.policy.base import AdmissionPart, Part
from batchgen.policy.options import MOST_TOKENS, option

if TYPE_CHECKING:
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
            computed = table.v_offset[row] + engine.k
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
