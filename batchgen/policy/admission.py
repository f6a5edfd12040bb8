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
    never runs short. Source: the new-token ratio of SGLang's scheduler (0.7 at first, then less).
    """

    changes = "never"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        ratio: float = option(0.5, least=0, most=1)
        most_tokens: int = option(4096, least=1, most=MOST_TOKENS)

    def room(self, engine: EngineMachine, rank: Rank, pages: int, free: int, resident: int) -> bool:
        table, most, rest = engine.table, self.config.most_tokens, 0
        known = engine.k + 1  # of a decoding row, less its offset
        for row in rank.running:
            whole = table.v_prompt[row] + table.v_budget[row]
            rest += min(whole - table.v_offset[row] - known, most)
        for row in (*rank.prefilling, *rank.held):
            rest += min(table.v_budget[row] - table.v_produced[row], most)
        kept = int(self.config.ratio * max(rest, 0)) // rank.page_tokens
        return pages + kept <= free
